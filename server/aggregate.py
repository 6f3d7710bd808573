"""Folding updates into the next state: streaming mask means, and MADA.

An update is decoded once, folded, and forgotten; no list of masks is kept. One that is left out
when the round closes is decoded again and taken back. All arithmetic is in integers and does not
depend on the order of arrival. Other methods are in files of their own, which `server.methods`
lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common.codecs import mask_codec, score_codec
from common.config import RunConfig
from common.layout import mask_context, update_layout
from common.masks import Mask, pack
from common.server_update import (
    RoundCounts,
    advance,
    dynamic_lambda,
    estimate,
    masked_count,
    rounded_ratio,
)
from common.state import LAMBDA_ONE, GlobalState, Scores
from server.counters import MaskCounter
from server.figures import Distance, Figures


@dataclass(frozen=True)
class Replay:
    """The integers that make the next state from the last.

    Attributes:
        counts: what was folded.
        lam: MADA's lambda in units of 1/65536.
    """

    counts: RoundCounts
    lam: int


@dataclass(frozen=True)
class Closed:
    """What closing a round gave.

    Attributes:
        state: what the round made; the next state, unless the downlink is error feedback, which
            sends a quantised part of the move and sharpens after it.
        lam: MADA's lambda in [0, 1]; 1 without MADA; None where the method has none.
        clients: updates that went in.
        replay: what an `exact` downlink sends; None where the method cannot be replayed.
    """

    state: GlobalState
    lam: float | None
    clients: int
    replay: Replay | None = None


class Contribution(Protocol):
    """One decoded update, ready to fold. Opaque to everyone but its aggregator."""

    @property
    def figures(self) -> Figures:
        """What was measured of it."""


class Aggregator(Protocol):
    """One round of one method. `decode` is pure and may run in any thread."""

    def decode(self, payloads: Sequence[bytes], rank: int) -> Contribution:
        """Turn the segment payloads of one client into a contribution.

        Raises:
            PayloadError: a payload does not decode.
        """

    def fold(self, contribution: Contribution) -> None:
        """Add one contribution; the order does not matter."""

    def unfold(self, contribution: Contribution) -> None:
        """Take back one contribution that was folded."""

    def close(self) -> Closed:
        """The next state from what was folded; at least one contribution."""


@dataclass(frozen=True)
class MaskContribution:
    """One client's mask and reference over the masked segment, and its scores."""

    mask: Mask | None
    reference: Mask | None
    scores: Scores | None
    figures: Figures


def state_mask(state: GlobalState, count: int) -> Mask:
    """The first so many bits of [theta > 1/2], the mask that the state stands for."""
    return pack(state.scores[:count] > 0)


class PrismAggregator:
    """PRISM and PRISM-alpha: clamped mask mean, score mean, dynamic moving average."""

    def __init__(self, config: RunConfig, state: GlobalState, cohort_size: int) -> None:
        self._config = config
        self._state = state
        self._cohort_size = cohort_size
        self._layout = update_layout(config)
        masked = masked_count(config)
        self._ones = MaskCounter(masked)
        self._reference_ones = MaskCounter(masked)
        self._expected = state_mask(state, masked)
        self._score_sum = np.zeros(state.dimension - masked, dtype=np.int64)
        self._clients = 0

    def decode(self, payloads: Sequence[bytes], rank: int) -> MaskContribution:
        """See `Aggregator.decode`; one payload per segment of the layout, in order."""
        mask = reference = scores = None
        others: tuple[Distance, ...] = ()
        for segment, payload in zip(self._layout, payloads, strict=True):
            if segment.kind == "mask":
                codec = mask_codec(segment.codec)
                context = mask_context(self._config, self._state, segment, rank, self._cohort_size)
                mask = codec.decode(payload, context)
                reference = codec.reference(context)
            else:
                scores = score_codec(segment.codec).decode(payload, segment.count)
                moved = scores.astype(np.int64) - self._state.scores[segment.slice]
                others = (Distance("score", int(np.abs(moved).sum()), segment.count),)
        like, shared = (self._expected, False) if reference is None else (reference, True)
        figures = Figures.of(mask, like, *others, shared=shared)
        return MaskContribution(mask, reference, scores, figures)

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

    def unfold(self, contribution: Contribution) -> None:
        """See `Aggregator.unfold`."""
        assert isinstance(contribution, MaskContribution)  # noqa: S101 - narrows the type
        if contribution.mask is not None:
            self._ones.remove(contribution.mask)
        if contribution.reference is not None:
            self._reference_ones.remove(contribution.reference)
        if contribution.scores is not None:
            self._score_sum -= contribution.scores
        self._clients -= 1

    def close(self) -> Closed:
        """See `Aggregator.close`."""
        ones = self._ones.counts()
        referenced = self._reference_ones.masks > 0
        if referenced:
            ones -= self._reference_ones.counts()
        mean_scores = rounded_ratio(self._score_sum, self._clients).astype(np.int16)
        counts = RoundCounts(self._clients, referenced, ones, mean_scores)
        target = estimate(self._config, self._state, counts)
        lam = dynamic_lambda(self._config, self._state, target)
        state = advance(self._config, self._state, counts, target, lam)
        return Closed(state, lam / LAMBDA_ONE, self._clients, Replay(counts, lam))
