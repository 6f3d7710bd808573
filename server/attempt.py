"""One attempt at a round: what is folded of it, what its clients report, how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from common.cells import CellTable
from common.config import RunConfig
from common.report import Report
from common.state import GlobalState
from server.aggregate import Closed, Contribution
from server.figures import Figures, table
from server.methods import make_aggregator
from server.metrics import Metrics
from server.recovered import StoredUpdate
from server.trim import left_out


class Attempt:
    """What is known of a round while it is open, and what closing it gives.

    Args:
        config: the run.
        state: that the round starts from.
        cohort_size: clients that were asked to train.
        now: seconds, of the clock that `age` and `metrics` are told too.

    Attributes:
        left_out: names whose updates were not counted; known once it is closed.
    """

    def __init__(self, config: RunConfig, state: GlobalState, cohort_size: int, now: float) -> None:
        self._config = config
        self._aggregator = make_aggregator(config, state, cohort_size)
        self._ranks: dict[str, int] = {}
        self._reports: dict[str, Report] = {}
        self._figures: dict[str, Figures] = {}
        self._opened_at = now
        self.left_out: tuple[str, ...] = ()

    def age(self, now: float) -> float:
        """Seconds since it was opened."""
        return now - self._opened_at

    def decode(self, update: StoredUpdate, rank: int) -> Contribution:
        """Make an update ready to fold; in any thread. See `Aggregator.decode`."""
        return self._aggregator.decode(update.segments(), rank)

    def fold(self, contribution: Contribution, update: StoredUpdate, rank: int) -> None:
        """Add what `decode` made of an update."""
        self._aggregator.fold(contribution)
        self._ranks[update.client] = rank
        self._reports[update.client] = update.report
        came = len(update.payload), update.seconds
        self._figures[update.client] = contribution.figures.arrived(*came)

    @property
    def taught(self) -> set[int]:
        """Labels that some client that counts trained on."""
        return {label for report in self._counted.values() for label in report.classes}

    @property
    def cells(self) -> dict[str, CellTable]:
        """The table of each client that counts; empty where the run has no cells."""
        return {name: report.cells for name, report in self._counted.items()}

    def close(self, stored: Callable[[], Mapping[str, StoredUpdate]]) -> Closed:
        """What was folded, less what the run leaves out; see `Aggregator.close`.

        Args:
            stored: reads the updates back, by name; called only if some are left out.
        """
        self.left_out = left_out(self._config, self._figures)
        updates = stored() if self.left_out else {}
        for name in self.left_out:
            self._aggregator.unfold(self.decode(updates[name], self._ranks[name]))
        return self._aggregator.close()

    def metrics(self, state: GlobalState, closed: Closed, now: float) -> Metrics:
        """Figures of the closed round, and of the state that everyone goes on from."""
        # By rank, so that the sums are the same whoever comes first.
        reports = [report for _, report in sorted(self._counted.items())]
        clients = table(self._figures, self.left_out)
        return Metrics.of(state, closed.lam, closed.clients, reports, self.age(now), clients)

    @property
    def _counted(self) -> dict[str, Report]:
        return {name: kept for name, kept in self._reports.items() if name not in self.left_out}
