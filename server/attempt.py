"""One attempt at a round: what is folded of it, what its clients report, how long it takes."""

from __future__ import annotations

from common.cells import CellTable
from common.config import RunConfig
from common.report import Report
from common.state import GlobalState
from server.aggregate import Closed, Contribution
from server.methods import make_aggregator
from server.metrics import Metrics
from server.recovered import StoredUpdate


class Attempt:
    """What is known of a round while it is open, and what closing it gives.

    Args:
        config: the run.
        state: that the round starts from.
        cohort_size: clients that were asked to train.
        now: seconds, of the clock that `metrics` is told too.
    """

    def __init__(self, config: RunConfig, state: GlobalState, cohort_size: int, now: float) -> None:
        self._aggregator = make_aggregator(config, state, cohort_size)
        self._reports: dict[str, Report] = {}
        self._opened_at = now

    def decode(self, update: StoredUpdate, rank: int) -> Contribution:
        """Make an update ready to fold; in any thread. See `Aggregator.decode`."""
        return self._aggregator.decode(update.segments(), rank)

    def fold(self, contribution: Contribution, update: StoredUpdate) -> None:
        """Add what `decode` made of an update."""
        self._aggregator.fold(contribution)
        self._reports[update.client] = update.report

    @property
    def taught(self) -> set[int]:
        """Labels that some client of the attempt trained on."""
        return {label for report in self._reports.values() for label in report.classes}

    @property
    def cells(self) -> dict[str, CellTable]:
        """The table of each client whose update was folded; empty where the run has no cells."""
        return {name: report.cells for name, report in self._reports.items()}

    def close(self) -> Closed:
        """What was folded; see `Aggregator.close`."""
        return self._aggregator.close()

    def metrics(self, state: GlobalState, closed: Closed, now: float) -> Metrics:
        """Figures of the closed round, and of the state that everyone goes on from."""
        seconds = now - self._opened_at
        # By rank, so that the sums are the same whoever comes first.
        reports = [self._reports[name] for name in sorted(self._reports)]
        return Metrics.of(state, closed.lam, closed.clients, reports, seconds)
