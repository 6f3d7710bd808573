"""Folding updates into the next state: streaming mask means, and MADA.

An update is decoded once, folded, and forgotten; no list of masks is kept. All arithmetic is
in integers and does not depend on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.codecs import mask_codec, score_codec
from common.config import RunConfig
from common.layout import SegmentSpec, mask_context, update_layout
from common.seeding import uniform16
from common.state import (
    LAMBDA_ONE,
    PROB_ONE,
    THETA_MAX,
    THETA_MIN,
    GlobalState,
    Probs,
    Scores,
    move_in_probability_space,
    move_in_score_space,
    sigma,
)
from server.counters import MaskCounter, Packed


@dataclass(frozen=True)
class Closed:
    """What closing a round gave.

    Attributes:
        state: the state that the method wants next, before any lossy broadcast.
        lam: MADA's lambda in [0, 1]; 1 without MADA; None where the method has none.
        clients: updates that went in.
    """

    state: GlobalState
    lam: float | None
    clients: int


class Contribution(Protocol):
    """One decoded update, ready to fold. Opaque to everyone but its aggregator."""


class Aggregator(Protocol):
    """One round of one method. `decode` is pure and may run in any thread."""

    def decode(self, payloads: Sequence[bytes], rank: int) -> Contribution:
        """Turn the segment payloads of one client into a contribution.

        Raises:
            PayloadError: a payload does not decode.
        """

    def fold(self, contribution: Contribution) -> None:
        """Add one contribution; the order does not matter."""

    def close(self) -> Closed:
        """The next state from what was folded; at least one contribution."""


@dataclass(frozen=True)
class MaskContribution:
    """One client's mask and reference over the masked segment, and its scores."""

    mask: Packed | None
    reference: Packed | None
    scores: Scores | None


class PrismAggregator:
    """PRISM and PRISM-alpha: clamped mask mean, score mean, dynamic moving average."""

    def __init__(self, config: RunConfig, state: GlobalState, cohort_size: int) -> None:
        self._config = config
        self._state = state
        self._cohort_size = cohort_size
        self._layout = update_layout(config)
        self._masked = _segment(self._layout, "mask")
        self._scored = _segment(self._layout, "score")
        self._ones = MaskCounter(self._masked.count)
        self._reference_ones = MaskCounter(self._masked.count)
        self._score_sum = np.zeros(self._scored.count, dtype=np.int64)
        self._clients = 0

    def decode(self, payloads: Sequence[bytes], rank: int) -> MaskContribution:
        """See `Aggregator.decode`; one payload per segment of the layout, in order."""
        mask = reference = scores = None
        for segment, payload in zip(self._layout, payloads, strict=True):
            if segment.kind == "mask":
                codec = mask_codec(segment.codec)
                context = mask_context(self._config, self._state, segment, rank, self._cohort_size)
                mask = codec.decode(payload, context)
                reference = codec.reference(context)
            else:
                scores = score_codec(segment.codec).decode(payload, segment.count)
        return MaskContribution(mask, reference, scores)

    def fold(self, contribution: Contribution) -> None:
        """See `Aggregator.fold`."""
        assert isinstance(contribution, MaskContribution)  # noqa: S101 - narrows the type
        if contribution.mask is not None:
            self._ones.add(contribution.mask)
        if contribution.reference is not None:
            self._reference_ones.add(contribution.reference)
        if contribution.scores is not None:
            self._score_sum += contribution.scores
        self._clients += 1

    def close(self) -> Closed:
        """See `Aggregator.close`; sections 4.1 to 4.3 of the paper."""
        scores = self._state.scores
        masked, scored = self._masked.slice, self._scored.slice
        mean_scores = _rounded_mean(self._score_sum, self._clients).astype(np.int16)
        target = np.concatenate([self._estimate(sigma(scores[masked])), sigma(mean_scores)])
        lam = self._lambda(target) if self._config.mada.enabled else LAMBDA_ONE

        move = (
            move_in_score_space if self._config.mada.space == "score" else move_in_probability_space
        )
        new = np.empty_like(scores)
        new[masked] = move(scores[masked], target[masked], lam)
        # Scores arrive as scores, so their mean never passes through probabilities.
        s = scores[scored].astype(np.int64)
        new[scored] = s + (((mean_scores - s) * lam + LAMBDA_ONE // 2) >> 16)
        state = GlobalState(self._state.round + 1, new)
        return Closed(state, lam / LAMBDA_ONE, self._clients)

    def _estimate(self, theta: Probs) -> Probs:
        """Clamped estimate of theta over the masked segment.

        With a reference whose expectation is theta exactly, theta + mean(M - R) / share is
        unbiased like mean(M), at a fraction of its variance; without, mean(M).
        """
        ones = self._ones.counts().astype(np.int64)
        if self._reference_ones.masks:
            share = round(self._config.codec.coordinates_per_round * PROB_ONE)
            difference = ones - self._reference_ones.counts()
            moved = difference * PROB_ONE * PROB_ONE // (self._clients * share)
            estimate = theta.astype(np.int64) + moved
        else:
            estimate = _rounded_mean(ones * PROB_ONE, self._clients)
        return np.clip(estimate, THETA_MIN, THETA_MAX).astype(np.uint16)

    def _lambda(self, target: Probs) -> int:
        """Hamming distance between a mask of the new estimate and one of the state, as Q16."""
        d, seed, t = self._state.dimension, self._config.seed, self._state.round
        old = uniform16(d, seed, "mada-old", t) < sigma(self._state.scores)
        new = uniform16(d, seed, "mada-new", t) < target
        return int(np.count_nonzero(old != new)) * LAMBDA_ONE // d


def make_aggregator(config: RunConfig, state: GlobalState, cohort_size: int) -> Aggregator:
    """The aggregator of the config's method for the round that starts from `state`."""
    return PrismAggregator(config, state, cohort_size)


def _segment(layout: tuple[SegmentSpec, ...], kind: str) -> SegmentSpec:
    """The segment of that kind, or an empty one at the end."""
    for segment in layout:
        if segment.kind == kind:
            return segment
    end = layout[-1].offset + layout[-1].count
    return SegmentSpec("mask" if kind == "mask" else "score", "", 0 if kind == "mask" else end, 0)


def _rounded_mean(total: NDArray[np.int64], clients: int) -> NDArray[np.int64]:
    """Round total / clients half up, in integers."""
    return (2 * total + clients) // (2 * clients)
