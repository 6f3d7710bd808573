"""FedPM (Isik et al., arXiv 2209.15328, Algorithm 2): Bayesian aggregation of masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.codecs import mask_codec
from common.config import RunConfig
from common.layout import mask_context, update_layout
from common.masks import Mask
from common.server_update import RoundCounts, advance, estimate
from common.state import LAMBDA_ONE, GlobalState
from server.aggregate import Closed, Contribution, MaskContribution, Replay, state_mask
from server.counters import MaskCounter
from server.figures import Figures


class FedPMAggregator:
    """The mode of a Beta posterior per parameter; no moving average, no control variate.

    The prior is Beta(1, 1), reset every round as in the authors' code. After K masks with m
    ones the posterior is Beta(1 + m, 1 + K - m), whose mode m / K is the mean of the masks;
    it is kept within [0.01, 0.99], since a probability of 0 or 1 could never change again.
    """

    def __init__(self, config: RunConfig, state: GlobalState, cohort_size: int) -> None:
        self._config = config
        self._state = state
        self._cohort_size = cohort_size
        (self._segment,) = update_layout(config)
        self._codec = mask_codec(self._segment.codec)
        self._ones = MaskCounter(state.dimension)
        self._expected = state_mask(state, state.dimension)

    def decode(self, payloads: Sequence[bytes], rank: int) -> MaskContribution:
        """See `Aggregator.decode`; one payload."""
        (payload,) = payloads
        context = mask_context(self._config, self._state, self._segment, rank, self._cohort_size)
        mask, reference = self._codec.decode(payload, context), self._codec.reference(context)
        like, shared = (self._expected, False) if reference is None else (reference, True)
        return MaskContribution(mask, None, None, Figures.of(mask, like, shared=shared))

    def fold(self, contribution: Contribution) -> None:
        """See `Aggregator.fold`."""
        self._ones.add(_mask_of(contribution))

    def unfold(self, contribution: Contribution) -> None:
        """See `Aggregator.unfold`."""
        self._ones.remove(_mask_of(contribution))

    def close(self) -> Closed:
        """See `Aggregator.close`."""
        no_scores = np.empty(0, dtype=np.int16)
        counts = RoundCounts(self._ones.masks, False, self._ones.counts(), no_scores)
        target = estimate(self._config, self._state, counts)
        state = advance(self._config, self._state, counts, target, LAMBDA_ONE)
        return Closed(state, None, self._ones.masks, Replay(counts, LAMBDA_ONE))


def _mask_of(contribution: Contribution) -> Mask:
    assert isinstance(contribution, MaskContribution)  # noqa: S101 - narrows the type
    assert contribution.mask is not None  # noqa: S101 - all of a FedPM update is a mask
    return contribution.mask
