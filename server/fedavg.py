"""Federated averaging of weights (McMahan et al., arXiv 1602.05629), on the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.codecs import weight_codec
from common.codecs.base import Weights
from common.config import RunConfig
from common.errors import PayloadError
from common.layout import update_layout
from common.state import GlobalState
from server.aggregate import Closed, Contribution
from server.figures import Distance, Figures

UNIT: Final = 2.0**-40
"""The fixed-point grid of the sum: finer than float32 wherever a weight exceeds 2**-17."""
_SUM_BITS: Final = 62
_COARSER: Final = 20
"""log2 of the units of a distance, `UNITS["weight"]`, in those of the sum."""
_MOST_MOVED: Final = 1 << 36


@dataclass(frozen=True)
class WeightContribution:
    """(d,) int64: one client's weights in units of `UNIT`."""

    weights: NDArray[np.int64]
    figures: Figures


class FedAvgAggregator:
    """The mean of the clients' weights, each client counting the same.

    Weights are summed as 64-bit integers, so the order of arrival changes no bit.
    """

    def __init__(self, config: RunConfig, state: GlobalState, cohort_size: int) -> None:
        (self._segment,) = update_layout(config)
        self._codec = weight_codec(self._segment.codec)
        self._round = state.round
        self._start = _fixed(state.weights)
        self._limit = 2.0**_SUM_BITS * UNIT / cohort_size
        self._sum = np.zeros(state.dimension, dtype=np.int64)
        self._clients = 0

    def decode(self, payloads: Sequence[bytes], rank: int) -> WeightContribution:  # noqa: ARG002
        """See `Aggregator.decode`; one payload.

        Raises:
            PayloadError: the payload does not decode, or the sum of such weights could overflow.
        """
        (payload,) = payloads
        weights = self._codec.decode(payload, self._segment.count)
        if weights.size and (largest := float(np.abs(weights).max())) > self._limit:
            raise PayloadError(f"a weight of {largest:.3g}; the sum holds up to {self._limit:.3g}")
        fixed = _fixed(weights)
        # In coarser units, and no more than a sum of them may hold.
        moved = np.minimum(np.abs(fixed - self._start) >> _COARSER, _MOST_MOVED)
        distance = Distance("weight", int(moved.sum()), weights.size)
        return WeightContribution(fixed, Figures(distances=(distance,)))

    def fold(self, contribution: Contribution) -> None:
        """See `Aggregator.fold`."""
        assert isinstance(contribution, WeightContribution)  # noqa: S101 - narrows the type
        self._sum += contribution.weights
        self._clients += 1

    def unfold(self, contribution: Contribution) -> None:
        """See `Aggregator.unfold`."""
        assert isinstance(contribution, WeightContribution)  # noqa: S101 - narrows the type
        self._sum -= contribution.weights
        self._clients -= 1

    def close(self) -> Closed:
        """See `Aggregator.close`."""
        # Conversion and division round the same way on every platform (IEEE 754).
        mean = self._sum / self._clients * UNIT
        return Closed(GlobalState(self._round + 1, mean.astype(np.float32)), None, self._clients)


def _fixed(weights: Weights) -> NDArray[np.int64]:
    return np.rint(weights.astype(np.float64) / UNIT).astype(np.int64)
