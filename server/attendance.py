"""Who is asked to train: draws, how many are enough, and who is left out for a while. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from common.config import RunConfig
from common.seeding import derive

LONGEST_ROUNDS: Final = 16
"""Rounds that a client is left out for at a time, at most."""


@dataclass(frozen=True)
class Absence:
    """Deadlines that a client missed in a row.

    Attributes:
        missed: how many.
        round: of the last of them.
    """

    missed: int
    round: int

    @property
    def until(self) -> int:
        """The first round in which the client is asked again: after 1, 2, 4, ... others."""
        return self.round + 1 + min(1 << min(self.missed - 1, 16), LONGEST_ROUNDS)

    def __str__(self) -> str:
        deadlines = "a deadline" if self.missed == 1 else f"{self.missed} deadlines in a row"
        return f"left out until round {self.until} because it missed {deadlines}"


NEVER: Final = Absence(0, -1)


def missed_again(
    absences: dict[str, Absence], round_: int, names: Iterable[str]
) -> tuple[str, ...]:
    """Note in `absences` that a deadline of a round passed without the update of some.

    A round may have several deadlines; missing all of them counts as missing one.

    Returns:
        Those for whom it is the first of the round.
    """
    first = tuple(name for name in names if absences.get(name, NEVER).round != round_)
    for name in first:
        absences[name] = Absence(absences.get(name, NEVER).missed + 1, round_)
    return first


class Attendance:
    """What the config and the past say about whom to ask.

    Args:
        config: the run.
        absences: by name, as an earlier process of the server left them.
    """

    def __init__(self, config: RunConfig, absences: Mapping[str, Absence]) -> None:
        self._config = config
        self._absences = dict(absences)

    # How many

    def needed(self, round_: int) -> int:
        """Clients that are here before a round opens."""
        return self._config.min_clients if round_ else self._config.start_clients

    def enough(self, cohort_size: int) -> int:
        """Updates that close a round at once."""
        return max(1, math.floor(cohort_size / self._config.round.oversampling + 1e-9))

    def quorum(self, cohort_size: int) -> int:
        """Updates that close a round at its deadline."""
        return _share(self._config.round.quorum, self.enough(cohort_size))

    @property
    def least(self) -> int:
        """Updates that close a round when a further deadline could bring no more."""
        return _share(self._config.round.participation, self._config.min_clients)

    # Who

    def cohort(self, round_: int, live: Iterable[str]) -> tuple[str, ...]:
        """Whom to ask when a round opens, sorted; of those who are here."""
        here = list(live)
        out = sorted(
            (name for name in here if self.left_out(name, round_)),
            key=lambda name: (self._absences[name].until, name),
        )
        # With too few others, those who would be back soonest are asked all the same.
        recalled = max(0, self._config.min_clients - (len(here) - len(out)))
        pool = set(here).difference(out[recalled:]) or set(here)
        wanted = _share(self._config.round.participation, len(pool))
        asked = _share(self._config.round.oversampling, wanted)
        return tuple(sorted(self._drawn(round_, 0, pool)[:asked]))

    def others(
        self, round_: int, draw: int, live: Iterable[str], cohort: Iterable[str], late: bool
    ) -> list[str]:
        """Whom to ask in place of some of a cohort, in the order of a further draw.

        Those who are left out are not asked before a deadline has passed, and then last: the round
        by which they would be back may be waiting for them.
        """
        drawn = self._drawn(round_, draw, set(live).difference(cohort))
        out = {name for name in drawn if self.left_out(name, round_)}
        asked = sorted(drawn, key=out.__contains__)
        return asked if late else asked[: len(drawn) - len(out)]

    def left_out(self, name: str, round_: int) -> Absence | None:
        """Why a client is not asked in a round; None if it may be."""
        absence = self._absences.get(name)
        return absence if absence is not None and round_ < absence.until else None

    def _drawn(self, round_: int, draw: int, names: Iterable[str]) -> list[str]:
        seed = self._config.seed
        return sorted(names, key=lambda name: derive(seed, "cohort", round_, draw, name))

    # The past

    @property
    def absences(self) -> Mapping[str, Absence]:
        """By name, those who missed the last deadline that they were asked to meet."""
        return self._absences

    def missed(self, round_: int, names: Iterable[str]) -> tuple[str, ...]:
        """A deadline of a round passed without the update of some; see `missed_again`."""
        return missed_again(self._absences, round_, names)

    def closed(self, round_: int, names: Iterable[str]) -> None:
        """A round closed with the updates of some."""
        for name in names:
            self._absences.pop(name, None)
        # Who was not here when asked again is most likely gone for good.
        long_ago = [n for n, a in self._absences.items() if a.until + LONGEST_ROUNDS < round_]
        for name in long_ago:
            del self._absences[name]


def _share(share: float, of: int) -> int:
    """ceil(share * of), at least 1, blind to the last bits of a product such as 0.1 * 30."""
    return max(1, math.ceil(share * of - 1e-9))
