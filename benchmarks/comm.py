"""Bytes and seconds of every codec, beside what theory allows.

    python -m benchmarks.comm [--states FILE.npz ...] [--dimension N] [--json]

Without files the states are synthetic: N(0, 5) logits, and clients that drifted from them by a
given mean divergence KL(theta_k || theta_t). A file holds `scores` (d,) int16, the global state
of a round, and `client_scores` (K, d) int16, what the clients trained from it.

For each state: the entropy of a client's mask, its cross-entropy under the shared state and the
divergence, in bits a parameter; then per codec the bits it takes, seconds to encode and decode
on this machine (best of --repeat), and for uplink codecs the error of the server's estimate of
the clients' mean probability, relative to the plain mean of their masks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.codecs import (
    ERROR_FEEDBACK,
    EXACT,
    KEYFRAME,
    KEYFRAME_ENTROPY,
    MASK_CODECS,
    CodecContext,
    mask_codec,
    step_units,
)
from common.config import RunConfig
from common.errors import DataError, PrismError
from common.masks import unpack
from common.sections import CodecConfig
from common.server_update import RoundCounts, estimate, mean_theta
from common.state import PROB_ONE, GlobalState, Scores, logit, sigma
from common.theory import MaskBits
from server.counters import MaskCounter

DIVERGENCES = (0.014, 0.03, 0.1)
SPREAD = 5.0
"""Standard deviation of the synthetic logits; gives masks of 0.35 bit."""
FEEDBACK_STEP = CodecConfig().error_feedback_step
VARIANCE_COORDINATES = 500_000
"""Estimator errors are averages, so the first of the coordinates suffice."""

T = TypeVar("T")
Signed = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Row:
    """One codec on one state; sizes in bits a parameter, times in seconds."""

    codec: str
    bits: float
    encode_seconds: float
    decode_seconds: float
    variance: float | None = None


@dataclass(frozen=True)
class State:
    """A global state, the clients that left it, and what theory says of them.

    Attributes:
        scores: (d,) int16.
        clients: makes (d,) int16 scores of client k.
        count: number of clients.
    """

    name: str
    scores: Scores
    clients: Callable[[int], Scores]
    count: int


@dataclass(frozen=True)
class Report:
    """Everything measured on one state."""

    state: str
    dimension: int
    clients: int
    entropy: float
    cross_entropy: float
    divergence: float
    rows: list[Row] = field(default_factory=list)


def _drifted(scores: Scores, drift: float, client: int) -> Scores:
    noise = np.random.default_rng([2, client]).standard_normal(scores.size, dtype=np.float32)
    moved = scores + 2048 * np.float32(drift) * noise
    return _to_scores(moved)


def _to_scores(values: NDArray[np.floating[Any]]) -> Scores:
    scores: Scores = np.clip(values, -32768, 32767).astype(np.int16)
    return scores


def synthetic(dimension: int, clients: int) -> Iterator[State]:
    """One state per divergence, with the drift that gives it found by bisection."""
    rng = np.random.default_rng(1)
    scores = _to_scores(rng.standard_normal(dimension, dtype=np.float32) * SPREAD * 2048)
    sample = scores[:VARIANCE_COORDINATES]
    for divergence in DIVERGENCES:
        low, high = 0.0, 5.0
        while high - low > 1e-3:
            middle = (low + high) / 2
            drifted = sigma(_drifted(sample, middle, 0))
            below = MaskBits.of(sigma(sample), drifted).kl < divergence
            low, high = (middle, high) if below else (low, middle)
        # Each closure keeps the drift of its own divergence.
        yield State(
            f"synthetic KL {divergence}",
            scores,
            lambda k, drift=low: _drifted(scores, drift, k),  # type: ignore[misc]
            clients,
        )


def captured(path: Path) -> State:
    """A state from a file.

    Raises:
        DataError: the file cannot be read, or its arrays are not as documented.
    """
    try:
        # Given a path, numpy leaves the file open if it is no whole archive.
        with path.open("rb") as file:
            arrays = np.load(file)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds one array: write both with numpy.savez")
            scores, client_scores = arrays["scores"], arrays["client_scores"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read states from {path}: {error}") from error
    good = scores.dtype == client_scores.dtype == np.int16 and scores.ndim == 1
    good = good and client_scores.ndim == 2 and client_scores.shape[1] == scores.size
    if not good or not client_scores.size:
        raise DataError(
            f"{path}: scores must be (d,) int16 and client_scores (K, d) int16, d and K above 0"
        )
    return State(path.name, scores, lambda k: client_scores[k], len(client_scores))


def timed(action: Callable[[], T], repeat: int) -> tuple[T, float]:
    """The result, and the shortest of `repeat` runs in seconds."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        result = action()
        best = min(best, time.perf_counter() - start)
    return result, best


def _context(state: State, rank: int, share: float, limit: int | None = None) -> CodecContext:
    return CodecContext(1, 0, rank, state.count, 0, state.scores[:limit], share)


def _round(state: State, name: str, share: float, n: int) -> tuple[RunConfig, RoundCounts]:
    """What the first n parameters of all clients' masks add up to, as a server counts them."""
    codec = {"up": name, "coordinates_per_round": share}
    config = RunConfig.model_validate({"codec": codec})
    ones, references = MaskCounter(n), MaskCounter(n)
    for rank in range(state.count):
        context = _context(state, rank, share, n)
        private = np.random.default_rng([3, rank])
        ones.add(mask_codec(name).sample(sigma(state.clients(rank)[:n]), context, private))
        reference = mask_codec(name).reference(context)
        if reference is not None:
            references.add(reference)
    referenced = references.masks > 0
    counts = ones.counts() - references.counts() if referenced else ones.counts()
    return config, RoundCounts(state.count, referenced, counts, np.empty(0, dtype=np.int16))


def variance(state: State, name: str, share: float) -> float:
    """Squared error of the server's mean of the clients' theta over that of the plain mean.

    Without the clamp that the server puts on it, which is not about codecs.
    """
    n = min(state.scores.size, VARIANCE_COORDINATES)
    config, counts = _round(state, name, share, n)
    told = mean_theta(config, GlobalState(0, state.scores[:n]), counts) / PROB_ONE
    truth, plain = np.zeros(n), np.zeros(n)
    for client in range(state.count):
        theta = sigma(state.clients(client)[:n]) / PROB_ONE
        truth += theta / state.count
        plain += theta * (1 - theta) / state.count**2
    return float(((told - truth) ** 2).mean() / plain.mean())


def up(state: State, name: str, share: float, repeat: int) -> Row:
    """An uplink codec on the first client's mask."""
    codec, context = mask_codec(name), _context(state, 0, share)
    mask = codec.sample(sigma(state.clients(0)), context, np.random.default_rng(4))
    payload, encode_seconds = timed(lambda: codec.encode(mask, context), repeat)
    decoded, decode_seconds = timed(lambda: codec.decode(payload, context), repeat)
    _same(unpack(decoded), unpack(mask), name)
    label = name if share == 1 else f"{name} x {share:g}"
    bits = 8 * len(payload) / context.size
    return Row(label, bits, encode_seconds, decode_seconds, variance(state, name, share))


def down(state: State, repeat: int) -> Iterator[Row]:
    """The downlink codecs: both keyframes, the counts, and one whole move to the estimate."""
    scores, n, clients = state.scores, state.scores.size, state.count
    config, round_counts = _round(state, "flips", 1.0, n)
    counts = round_counts.ones
    target = logit(estimate(config, GlobalState(0, scores), round_counts))
    pending, step = target.astype(np.int32) - scores, step_units(FEEDBACK_STEP)
    levels = ERROR_FEEDBACK.quantise(pending, scores, step)

    def feedback() -> bytes:
        return ERROR_FEEDBACK.encode(ERROR_FEEDBACK.quantise(pending, scores, step), scores)

    keyframe, entropy = KEYFRAME, KEYFRAME_ENTROPY
    pairs: list[tuple[str, Callable[[], bytes], Callable[[bytes], Signed], Signed]] = [
        ("keyframe", lambda: keyframe.encode(scores), lambda p: keyframe.decode(p, n), scores),
        (
            "keyframe-entropy",
            lambda: entropy.encode(scores),
            lambda p: entropy.decode(p, n),
            scores,
        ),
        (
            "exact",
            lambda: EXACT.encode(counts, clients, scores),
            lambda p: EXACT.decode(p, clients, scores),
            counts,
        ),
        ("error-feedback", feedback, lambda p: ERROR_FEEDBACK.decode(p, scores), levels),
    ]
    for name, encode, decode, expected in pairs:
        yield _row(name, encode, decode, expected, repeat)


def _row(
    name: str,
    encode: Callable[[], bytes],
    decode: Callable[[bytes], Signed],
    expected: Signed,
    repeat: int,
) -> Row:
    payload, encode_seconds = timed(encode, repeat)
    decoded, decode_seconds = timed(lambda: decode(payload), repeat)
    _same(decoded, expected, name)
    return Row(name, 8 * len(payload) / expected.size, encode_seconds, decode_seconds)


def _same(decoded: NDArray[np.integer[Any]], expected: NDArray[np.integer[Any]], name: str) -> None:
    if not np.array_equal(decoded, expected):
        raise DataError(f"{name} did not decode to what was encoded")


def measure(state: State, shares: list[float], repeat: int) -> Report:
    """Every codec on one state."""
    bits = MaskBits.of(sigma(state.scores), sigma(state.clients(0)))
    rows = [up(state, codec.name, 1.0, repeat) for codec in MASK_CODECS]
    rows += [up(state, "flips", share, repeat) for share in shares]
    rows += down(state, repeat)
    entropy = bits.cross_entropy - bits.kl
    size, count = state.scores.size, state.count
    return Report(state.name, size, count, entropy, bits.cross_entropy, bits.kl, rows)


def show(report: Report, console: Console) -> None:
    """Print one report as a table; the times also as a ratio to the entropy codec's."""
    base = next(row for row in report.rows if row.codec == "entropy")
    table = Table(
        title=f"{escape(report.state)}, d = {report.dimension:,}, {report.clients} clients\n"
        f"entropy {report.entropy:.4f}, cross-entropy {report.cross_entropy:.4f}, "
        f"KL {report.divergence:.4f}"
    )
    for column in ("codec", "bits", "bytes", "enc s", "dec s", "ratio", "var."):
        table.add_column(column, no_wrap=True, justify="left" if column == "codec" else "right")
    for row in report.rows:
        seconds = row.encode_seconds + row.decode_seconds
        table.add_row(
            row.codec,
            f"{row.bits:.4f}",
            f"{round(row.bits * report.dimension / 8):,}",
            f"{row.encode_seconds:.3f}",
            f"{row.decode_seconds:.3f}",
            f"{seconds / (base.encode_seconds + base.decode_seconds):.2f}",
            "" if row.variance is None else f"{row.variance:.3f}",
        )
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comm", description=__doc__)
    parser.add_argument("--states", nargs="+", type=Path, default=[], metavar="FILE.npz")
    parser.add_argument("--dimension", type=int, default=3_543_616, help="of synthetic states")
    parser.add_argument("--clients", type=int, default=10, help="of synthetic states")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.3, 0.1])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    if min(options.dimension, options.clients, options.repeat) < 1:
        parser.error("--dimension, --clients and --repeat must be at least 1")
    if not all(0 < share <= 1 for share in options.shares):
        parser.error("--shares must lie in (0, 1]")
    try:
        states = (
            (captured(path) for path in options.states)
            if options.states
            else synthetic(options.dimension, options.clients)
        )
        reports = []
        for state in states:
            reports.append(measure(state, options.shares, options.repeat))
            if not options.json:
                show(reports[-1], Console())
    except PrismError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
