"""From what a round counted to the next state, in integers: the server's step, and its replay.

    target = estimate(counts)                     section 4.1 of the paper, 4.3 for alpha
    lambda = dynamic_lambda(state, target)        section 4.2, where the run has MADA
    next   = advance(state, target, lambda)       the move, then the round's sharpening

The server runs this on what it folded; with the `exact` downlink a client runs it on the same
integers and ends with the same state bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common import masks
from common.codecs import selection_threshold
from common.config import RunConfig
from common.layout import update_layout
from common.seeding import uniform16
from common.state import (
    LAMBDA_ONE,
    PROB_ONE,
    THETA_MAX,
    THETA_MIN,
    GlobalState,
    Probs,
    Scores,
    logit,
    move_in_probability_space,
    move_in_score_space,
    sigma,
)

_MOST_STEPS: Final = 60
"""In which a run's sharpening is done."""
_UNIT: Final = 1 << 16
"""Fixed point of the growth factor."""


@dataclass(frozen=True)
class RoundCounts:
    """What a round's updates add up to.

    Attributes:
        clients: updates that went in, K.
        referenced: whether `ones` counts M - R, else M.
        ones: (masked,) int32, the sum over the clients.
        mean_scores: (scored,) int16, the mean of the uploaded scores (PRISM-alpha).
    """

    clients: int
    referenced: bool
    ones: NDArray[np.int32]
    mean_scores: Scores


def estimate(config: RunConfig, state: GlobalState, counts: RoundCounts) -> Probs:
    """(d,) uint16: the new estimate of theta, clamped to [0.01, 0.99] where masks travelled."""
    theta = mean_theta(config, state, counts)
    clamped = np.clip(theta, THETA_MIN, THETA_MAX).astype(np.uint16)
    return np.concatenate([clamped, sigma(counts.mean_scores)])


def mean_theta(config: RunConfig, state: GlobalState, counts: RoundCounts) -> NDArray[np.int64]:
    """(masked,): the clients' mean theta as their masks tell it, in units of 1/65536.

    With a reference whose expectation is theta exactly, theta + mean(M - R) / share is
    unbiased like mean(M), at a fraction of its variance; without, it is mean(M). Being
    unbiased, it may lie outside [0, 1].
    """
    ones = counts.ones.astype(np.int64)
    if not counts.referenced:
        return rounded_ratio(ones * PROB_ONE, counts.clients)
    sent = selection_threshold(config.codec.coordinates_per_round)
    moved = rounded_ratio(ones * PROB_ONE * PROB_ONE, counts.clients * sent)
    return sigma(state.scores[: ones.size]).astype(np.int64) + moved


def dynamic_lambda(config: RunConfig, state: GlobalState, target: Probs) -> int:
    """MADA's lambda: the Hamming distance between a mask of the estimate and one of the state.

    Returns:
        the share of positions that differ, in units of 1/65536; all of it without MADA.
    """
    if not config.mada.enabled:
        return LAMBDA_ONE
    return hamming(config, state, target) * LAMBDA_ONE // state.dimension


def hamming(config: RunConfig, state: GlobalState, theta: Probs) -> int:
    """Positions in which a mask sampled from the state and one sampled from theta differ."""
    d, t = state.dimension, state.round
    old = masks.pack(uniform16(d, config.seed, "mada-old", t) < sigma(state.scores))
    new = masks.pack(uniform16(d, config.seed, "mada-new", t) < theta)
    return masks.hamming(old, new)


def advance(
    config: RunConfig, state: GlobalState, counts: RoundCounts, target: Probs, lam: int
) -> GlobalState:
    """Move the state by lambda towards the estimate, and sharpen it: what the round made of it.

    Uploaded scores move as scores, at once where `mada.scores` is "replaced". With the
    error-feedback downlink sharpening is left to `common.downlink.move_by_levels`: of this move
    that downlink sends a quantised part, and what is sharpened is the state that was broadcast.

    Args:
        config: the run.
        state: (d,) scores that the round started from.
        counts: what the round's updates add up to.
        target: (d,) uint16, the estimate made of them.
        lam: lambda in units of 1/65536.
    """
    scores, border = state.scores, counts.ones.size
    move = move_in_score_space if config.mada.space == "score" else move_in_probability_space
    new = np.empty_like(scores)
    new[:border] = move(scores[:border], target[:border], lam)
    s = scores[border:].astype(np.int64)
    by = lam if config.mada.scores == "damped" else LAMBDA_ONE
    new[border:] = s + (((counts.mean_scores - s) * by + LAMBDA_ONE // 2) >> 16)
    moved = GlobalState(state.round + 1, new)
    return moved if config.codec.down == "error-feedback" else sharpened(config, moved)


def sharpened(config: RunConfig, state: GlobalState) -> GlobalState:
    """The state with its scores grown by a round's share of the run's sharpening.

    None is left once the run's schedules have ended.

    Feature matching sees the mean over the masks that training samples, so nothing in it asks a
    single mask to be good. Growth makes late masks sure of themselves, without a bit on the
    wire. It takes no score beyond that of the largest theta that an estimate may have.

    Args:
        config: the run.
        state: what the round made; `round` is that of the state, from 1.
    """
    # Growth by less than half a unit would be lost in rounding, so a long run takes fewer steps.
    rounds = config.schedule_length
    steps = min(rounds, _MOST_STEPS)
    due = state.round * steps // rounds > (state.round - 1) * steps // rounds
    if config.sharpening == 1 or not due or state.round > rounds:
        return state
    size = np.abs(state.scores.astype(np.int64))
    factor = growth_factor(config.sharpening, steps)
    limit = int(logit(np.array([THETA_MAX], dtype=np.uint16))[0])
    larger = np.maximum(size, np.minimum((size * factor + _UNIT // 2) // _UNIT, limit))
    return GlobalState(state.round, (np.sign(state.scores) * larger).astype(np.int16))


@lru_cache(maxsize=4)
def growth_factor(total: float, steps: int) -> int:
    """One step's share of a total growth in units of 1/65536, the same on every machine."""
    with localcontext(prec=40):
        return int(((Decimal(total).ln() / steps).exp() * _UNIT).to_integral_value())


def masked_count(config: RunConfig) -> int:
    """Parameters that travel as a mask; they come first."""
    return sum(segment.count for segment in update_layout(config) if segment.kind == "mask")


def rounded_ratio(total: NDArray[np.int64], divisor: int) -> NDArray[np.int64]:
    """Round total / divisor half up, in integers."""
    return (2 * total + divisor) // (2 * divisor)
