"""The way from one state to the next: exact counts, or a quantised difference.

Both are coded under bins of the state that the client holds, and both are replayed in integers,
so both sides end with the same state bit for bit.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import isqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.codecs import coder
from common.codecs.entropy import bin_shift, score_bins
from common.errors import PayloadError
from common.rpc.prism.v1 import federation_pb2 as pb
from common.state import PROB_ONE, SCORE_UNIT, Scores, sigma_table

_FINEST: Final = 9
"""log2 of the narrowest bin of the state, in score units: a quarter of a logit."""
MAX_LEVEL: Final = 127
"""Largest multiple of a step that one round moves; the rest stays pending."""
MAX_CLIENTS: Final = 1 << 16

Counts = NDArray[np.int32]
Moves = NDArray[np.int32]


class ExactCodec:
    """What the server counted: the client replays the round from it.

    The payload is the counts as `coder` makes them, then the checksum.
    """

    name = "exact"
    wire: int = pb.STATE_CODEC_EXACT

    def encode(self, counts: Counts, clients: int, scores: Scores) -> bytes:
        """Code counts under the state that they move.

        Args:
            counts: (n,) int32 in [-clients, clients]: the sum of M - R over the cohort, or of M.
            clients: masks that were counted, below 2**16.
            scores: (n,) int16, the state before the round.
        """
        shift = _shift(scores.size, 2 * clients + 1)
        keys, contexts = score_bins(scores, shift), 1 << (16 - shift)
        body = coder.encode(counts + clients, keys, contexts, 2 * clients + 1)
        return coder.seal(body, counts.astype("<i4").tobytes(), scores.size)

    def decode(self, payload: bytes, clients: int, scores: Scores) -> Counts:
        """(n,) int32 counts.

        Raises:
            PayloadError: the payload is not one that `encode` made for this state.
        """
        if not 0 < clients < MAX_CLIENTS:
            raise PayloadError(f"exact payload counts {clients} clients")
        shift = _shift(scores.size, 2 * clients + 1)
        keys, contexts = score_bins(scores, shift), 1 << (16 - shift)
        body = coder.unseal(payload, self.max_bytes(scores.size, clients), self.name)
        counts = coder.decode(body, keys, contexts, 2 * clients + 1) - np.int32(clients)
        coder.verify(payload, counts.astype("<i4").tobytes(), scores.size, self.name)
        return counts

    def max_bytes(self, n: int, clients: int) -> int:
        """Longest payload of n counts over so many clients."""
        alphabet = 2 * clients + 1
        return coder.bound(n, 1 << (16 - _shift(n, alphabet)), alphabet)


class ErrorFeedbackCodec:
    """A quantised part of what is pending; the server carries the rest over.

    The quantiser's step follows 1 / sqrt(theta (1 - theta)), which is how far a score moves where
    theta moves by a share of a sampled mask's standard deviation. Nothing below three quarters of
    a step moves at all: of the dead zones tried, that one gives the least divergence for the
    bits. The payload is the largest level (one byte), the levels as `coder` makes them, then the
    checksum.
    """

    name = "error-feedback"
    wire: int = pb.STATE_CODEC_ERROR_FEEDBACK

    def quantise(self, pending: Moves, scores: Scores, step: int) -> NDArray[np.int8]:
        """Levels of a pending difference: 0 in the dead zone, else the nearest multiple.

        Args:
            pending: (n,) int32, target minus broadcast scores.
            scores: (n,) int16, the scores that were broadcast last.
            step: see `step_units`.

        Returns:
            (n,) int8 in [-MAX_LEVEL, MAX_LEVEL].
        """
        steps = _steps_of(scores, step)
        size = np.abs(pending)
        level = np.where(4 * size < 3 * steps, 0, (size + steps // 2) // steps)
        return (np.sign(pending) * np.minimum(level, MAX_LEVEL)).astype(np.int8)

    def dequantise(self, levels: NDArray[np.int8], scores: Scores, step: int) -> Moves:
        """(n,) int32 to add to the broadcast scores; the sum stays within int16."""
        moved = scores + levels * _steps_of(scores, step)
        return (np.clip(moved, -32768, 32767) - scores).astype(np.int32)

    def encode(self, levels: NDArray[np.int8], scores: Scores) -> bytes:
        """The payload of (n,) int8 levels, coded under the scores that were broadcast last."""
        largest = int(np.abs(levels.astype(np.int32)).max(initial=0))
        shift = _shift(scores.size, 2 * largest + 1)
        keys, contexts = score_bins(scores, shift), 1 << (16 - shift)
        symbols = levels.astype(np.int32) + largest
        body = bytes([largest]) + coder.encode(symbols, keys, contexts, 2 * largest + 1)
        return coder.seal(body, levels.tobytes(), scores.size)

    def decode(self, payload: bytes, scores: Scores) -> NDArray[np.int8]:
        """(n,) int8 levels.

        Raises:
            PayloadError: the payload is not one that `encode` made for these scores.
        """
        body = coder.unseal(payload, self.max_bytes(scores.size), self.name)
        if not body or body[0] > MAX_LEVEL:
            raise PayloadError(f"{self.name} payload has no level range")
        largest = body[0]
        shift = _shift(scores.size, 2 * largest + 1)
        keys, contexts = score_bins(scores, shift), 1 << (16 - shift)
        symbols = coder.decode(body[1:], keys, contexts, 2 * largest + 1)
        levels = (symbols - largest).astype(np.int8)
        coder.verify(payload, levels.tobytes(), scores.size, self.name)
        return levels

    def max_bytes(self, n: int) -> int:
        """Longest payload of n levels."""
        return coder.bound(n, 1 << (16 - _FINEST), 2 * MAX_LEVEL + 1) + 1


def step_units(standard_deviations: Fraction | float) -> int:
    """The step in score units where theta (1 - theta) = 1, from the config's key, in integers.

    Args:
        standard_deviations: of one sampled mask, by how much of which theta moves in a step.
    """
    return max(1, int(Fraction(standard_deviations) * SCORE_UNIT))


@lru_cache(maxsize=4)
def step_table(step: int) -> NDArray[np.int32]:
    """(65536,) int32: round(step / sqrt(theta (1 - theta))) at score + 32768, in integers."""
    p = sigma_table()[:32769].astype(np.int64)
    square = (2 * step * PROB_ONE) ** 2
    root = {q: (isqrt(square // q) + 1) // 2 for q in np.unique(p * (PROB_ONE - p)).tolist()}
    half = np.array([root[q] for q in (p * (PROB_ONE - p)).tolist()], dtype=np.int64)
    # theta(-s) = 1 - theta(s), so the other half mirrors this one.
    whole = np.concatenate([half, half[32767:0:-1]])
    table: Moves = whole.clip(1, 65535).astype(np.int32)
    table.flags.writeable = False
    return table


def _steps_of(scores: Scores, step: int) -> NDArray[np.int32]:
    steps: NDArray[np.int32] = step_table(step)[scores.view(np.uint16) ^ np.uint16(0x8000)]
    return steps


def _shift(n: int, alphabet: int) -> int:
    return bin_shift(n, _FINEST, 64 * alphabet)
