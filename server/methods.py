"""Aggregation by method: a further method is one more line here, and its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from common.config import RunConfig
from common.state import GlobalState
from server.aggregate import Aggregator, PrismAggregator
from server.fedavg import FedAvgAggregator
from server.fedpm import FedPMAggregator

AGGREGATORS: Final[Mapping[str, Callable[[RunConfig, GlobalState, int], Aggregator]]] = {
    "prism": PrismAggregator,
    "fedpm": FedPMAggregator,
    "fedavg": FedAvgAggregator,
}


def make_aggregator(config: RunConfig, state: GlobalState, cohort_size: int) -> Aggregator:
    """The aggregator of the config's method for the round that starts from `state`."""
    return AGGREGATORS[config.method](config, state, cohort_size)
