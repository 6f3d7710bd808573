"""Range coding of symbols that fall into known contexts; the one entropy coder of the project.

Symbols are grouped by context. Each context that holds any has its own histogram, which travels
quantised to quarter octaves; a context with one distinct symbol costs nothing more. Models are
made of integers over 2**24, so streams are the same on every platform; the coder itself is
constriction's range coder (Bamler 2022, arXiv 2201.01741).

A stream is

    levels     which (symbol, context) pairs occur and how often, difference-coded
    symbols    the contexts in order, each one's symbols in order of position
    checksum   4 bytes of CRC-32 over the above and over what the caller decodes to

The checksum is there because a range decoder makes something of any input.
"""

from __future__ import annotations

import zlib
from functools import cache
from math import isqrt
from typing import Any, Final, TypeAlias

import constriction
import numpy as np
from numpy.typing import NDArray

from common.errors import PayloadError

# constriction has no type stubs, and its submodules exist only as attributes.
_Encoder: TypeAlias = Any
_Decoder: TypeAlias = Any
_Model: TypeAlias = Any
_stream: Any = constriction.stream

PRECISION: Final = 24
"""Bits of a probability in constriction's coder; also the range of a quantised count."""
LEVELS: Final = 4 * PRECISION + 1
"""Quantised counts: level i stands for a share of 2 ** (i / 4 - 24)."""
CHECKSUM_BYTES: Final = 4
SLACK_BYTES: Final = 64
"""Covers the checksum, the coder's last words and the level header's fixed part."""

Keys = NDArray[np.uint16]
Symbols = NDArray[np.integer[Any]]
_Ints = NDArray[np.int64]


def seal(body: bytes, content: bytes, n: int) -> bytes:
    """Append the checksum over n, the body, and the n symbols as bytes that it decodes to."""
    checksum = zlib.crc32(content, zlib.crc32(body, n))
    return body + checksum.to_bytes(CHECKSUM_BYTES, "little")


def unseal(payload: bytes, limit: int, what: str) -> bytes:
    """The body of a sealed payload, not yet verified.

    Args:
        payload: what arrived.
        limit: the codec's longest payload in bytes.
        what: the codec's name, for the message.

    Raises:
        PayloadError: too short to have a body, or longer than the limit.
    """
    if len(payload) < CHECKSUM_BYTES:
        raise PayloadError(f"{what} payload of {len(payload)} bytes is truncated")
    if len(payload) > limit:
        raise PayloadError(f"{what} payload of {len(payload)} bytes; the longest takes {limit}")
    return payload[:-CHECKSUM_BYTES]


def verify(payload: bytes, content: bytes, n: int, what: str) -> None:
    """Check a sealed payload against the n symbols that were decoded from its body.

    Raises:
        PayloadError: they do not belong together.
    """
    if seal(payload[:-CHECKSUM_BYTES], content, n) != payload:
        raise PayloadError(f"{what} payload is corrupt, or was made for another state")


def encode(symbols: Symbols, keys: Keys, contexts: int, alphabet: int) -> bytes:
    """Code symbols, each under the histogram of its context.

    Args:
        symbols: (n,) integers in [0, alphabet).
        keys: (n,) uint16, the context of each, in [0, contexts); the decoder has the same.
        contexts: number of contexts.
        alphabet: number of symbols, below 2**20.

    Returns:
        The stream without its checksum; a multiple of 4 bytes.
    """
    encoder = _stream.queue.RangeEncoder()
    pairs = keys * np.int64(alphabet) + symbols
    table = np.bincount(pairs, minlength=contexts * alphabet).reshape(contexts, alphabet)
    sizes = table.sum(axis=1)
    used = np.flatnonzero(sizes)
    levels = _quantise(table[used])
    _encode_levels(encoder, levels)
    many = (levels > 0).sum(axis=1) > 1
    # Sorting is what costs; contexts that hold one distinct symbol need none.
    where, order = _order(keys, used[many], contexts)
    grouped = symbols[order] if where is None else symbols[where][order]
    grouped = grouped.astype(np.int32)
    start = 0
    for context, weights in zip(used[many], _shares(levels[many]), strict=True):
        stop = start + sizes[context]
        encoder.encode(grouped[start:stop], _model(weights))
        start = stop
    return np.asarray(encoder.get_compressed()).astype("<u4").tobytes()


def decode(body: bytes, keys: Keys, contexts: int, alphabet: int) -> NDArray[np.int32]:
    """Symbols of a stream that `encode` made with the same contexts.

    Takes memory for n symbols and the level table, whatever the stream says.

    Raises:
        PayloadError: the stream is not a whole one.
    """
    if len(body) % 4:
        raise PayloadError(f"range-coded stream of {len(body)} bytes is not whole words")
    decoder = _stream.queue.RangeDecoder(np.frombuffer(body, dtype="<u4").astype(np.uint32))
    sizes = np.bincount(keys, minlength=contexts)
    used = np.flatnonzero(sizes)
    try:
        levels = _decode_levels(decoder, len(used), alphabet)
        symbols = _decode_symbols(decoder, levels, keys, sizes)
    # constriction reports invalid data as AssertionError or ValueError.
    except (AssertionError, ValueError) as error:
        raise PayloadError(f"range-coded stream is corrupt: {error}") from error
    if not decoder.maybe_exhausted():
        raise PayloadError("range-coded stream is longer than its symbols")
    return symbols


def _decode_symbols(
    decoder: _Decoder, levels: _Ints, keys: Keys, sizes: NDArray[np.intp]
) -> NDArray[np.int32]:
    used = np.flatnonzero(sizes)
    many = (levels > 0).sum(axis=1) > 1
    only = np.zeros(len(sizes), dtype=np.int32)
    only[used] = levels.argmax(axis=1)
    symbols = only[keys]
    parts = [
        decoder.decode(_model(weights), int(sizes[context]))
        for context, weights in zip(used[many], _shares(levels[many]), strict=True)
    ]
    if parts:
        where, order = _order(keys, used[many], len(sizes))
        symbols[order if where is None else where[order]] = np.concatenate(parts)
    return symbols


def _order(
    keys: Keys, wanted: NDArray[np.intp], contexts: int
) -> tuple[NDArray[np.intp] | None, NDArray[np.intp]]:
    """Positions whose context is wanted (None for all), and the order that groups them."""
    mask = np.zeros(contexts, dtype=np.bool_)
    mask[wanted] = True
    kept = mask[keys]
    if kept.all():
        return None, np.argsort(keys, kind="stable")
    where = np.flatnonzero(kept)
    return where, np.argsort(keys[where], kind="stable")


@cache
def _weight_table() -> _Ints:
    """(LEVELS + 1,) round(2 ** (i / 4 + 6)) at 1 + i in integers; 0 at 0, for what is absent."""
    table = [0] + [isqrt(isqrt(1 << (i + 24 + 80))) >> 20 for i in range(LEVELS)]
    return np.array(table, dtype=np.int64)


def _quantise(table: NDArray[np.intp]) -> _Ints:
    """(contexts, alphabet) counts -> levels: 0 for none, else 1 + the nearest quarter octave."""
    totals = table.sum(axis=1, keepdims=True)
    share = (table.astype(np.int64) << (PRECISION + 6)) // np.maximum(totals, 1)
    weights = _weight_table()[1:]
    nearest = 1 + np.searchsorted((weights[1:] + weights[:-1]) // 2, share)
    return np.where(table > 0, nearest, 0)


def _shares(levels: _Ints) -> _Ints:
    """(contexts, alphabet) levels -> probabilities in units of 2**-24, each row sums to 1."""
    weights = _weight_table()[levels]
    share: _Ints = (weights << PRECISION) // weights.sum(axis=1, keepdims=True)
    rows = np.arange(len(levels))
    share[rows, levels.argmax(axis=1)] += (1 << PRECISION) - share.sum(axis=1)
    return share


def _model(share: _Ints) -> _Model:
    """A model of constriction's; the division is exact, so every platform builds the same."""
    return _stream.model.Categorical(share / float(1 << PRECISION), perfect=False)


def total_bits(table: NDArray[np.integer[Any]]) -> int:
    """Length of the symbols of a (contexts, alphabet) table of counts, in bits, in integers."""
    totals = table.sum(axis=1)
    return int((totals * _log2(totals)).sum() - (table * _log2(table)).sum()) >> 16


def _log2(values: NDArray[np.integer[Any]]) -> _Ints:
    """log2 in units of 2**-16, by repeated squaring in integers; 0 for values below 2."""
    mantissa, exponent = np.frexp(np.maximum(values, 1).astype(np.float64))
    y = (mantissa * (1 << 31)).astype(np.int64)
    result: _Ints = exponent.astype(np.int64) - 1
    for _ in range(16):
        y = (y * y) >> 30
        carry = y >> 31
        y >>= carry
        result = 2 * result + carry
    return result


@cache
def _step_models() -> tuple[_Model, ...]:
    """Fixed models for the difference of two levels, from nearly constant to nearly uniform."""
    models = []
    distance = np.abs(np.arange(-LEVELS + 1, LEVELS))
    for half_life in (1, 2, 4, 8, 16):
        weights = np.maximum((1 << 18) >> (distance // half_life), 1 << 6)
        levels = weights.astype(np.int64) << PRECISION
        share = levels // weights.sum()
        share[LEVELS - 1] += (1 << PRECISION) - share.sum()
        models.append(_model(share))
    return tuple(models)


def _uniform(size: int) -> _Model:
    share = np.full(size, (1 << PRECISION) // size, dtype=np.int64)
    share[0] += (1 << PRECISION) - share.sum()
    return _model(share)


def _encode_levels(encoder: _Encoder, levels: _Ints) -> None:
    """Presence of each (symbol, context) as changes along contexts, then level differences."""
    flat = levels.T.ravel()
    present = flat > 0
    changes = np.diff(present, prepend=False).astype(np.int32)
    rate = _quantise(np.bincount(changes, minlength=2)[None, :])
    encoder.encode(rate[0].astype(np.int32), _uniform(LEVELS + 1))
    if (rate[0] > 0).all():
        encoder.encode(changes, _model(_shares(rate)[0]))
    steps = np.diff(flat[present], prepend=LEVELS).astype(np.int32) + (LEVELS - 1)
    size = int(np.abs(steps - (LEVELS - 1)).sum())
    choice = _best_model(size, len(steps))
    encoder.encode(np.array([choice], dtype=np.int32), _uniform(len(_step_models())))
    encoder.encode(steps, _step_models()[choice])


def _best_model(total: int, steps: int) -> int:
    """The half-life nearest to the mean size of a step."""
    return int(np.searchsorted([steps, 3 * steps, 6 * steps, 12 * steps], total))


def _decode_levels(decoder: _Decoder, contexts: int, alphabet: int) -> _Ints:
    if contexts == 0:
        return np.zeros((0, alphabet), dtype=np.int64)
    cells = contexts * alphabet
    rate = decoder.decode(_uniform(LEVELS + 1), 2).astype(np.int64)[None, :]
    if (rate[0] > 0).all():
        changes = decoder.decode(_model(_shares(rate)[0]), cells)
    else:
        changes = np.full(cells, int(rate[0, 1] > 0), dtype=np.int32)
    present = (np.cumsum(changes) & 1).astype(np.bool_)
    choice = int(decoder.decode(_uniform(len(_step_models())), 1)[0])
    steps = decoder.decode(_step_models()[choice], int(present.sum())) - (LEVELS - 1)
    values = LEVELS + np.cumsum(steps, dtype=np.int64)
    flat = np.zeros(cells, dtype=np.int64)
    flat[present] = values
    levels = flat.reshape(alphabet, contexts).T
    if (values < 1).any() or (values > LEVELS).any() or (levels.max(axis=1) == 0).any():
        raise PayloadError("range-coded stream has an impossible histogram")
    return levels


def bound(n: int, contexts: int, alphabet: int) -> int:
    """Longest stream of n symbols in bytes, checksum included.

    A symbol costs at most log2(alphabet) bits on average under the histogram of its context, and
    quantising that adds less than a sixteenth. An entry of the histograms takes at most 18 bits
    for its level and as many for each change of presence, of which only n entries have any.
    """
    per_symbol = max(1, (alphabet - 1).bit_length())
    histograms = min(3 * contexts * alphabet, 7 * n)
    return n * per_symbol * 17 // 128 + histograms + SLACK_BYTES
