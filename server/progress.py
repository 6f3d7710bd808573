"""The log's lines about whom a run waits for: each change once."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Final

from server.attendance import Absence
from server.members import some

BETWEEN_SECONDS: Final = 2.0
"""Between two lines about the same round."""
MOST_LINES: Final = 10
"""About clients that missed one deadline; of more there is one line."""

log = logging.getLogger(__name__)


class Progress:
    """What was said last, and when."""

    def __init__(self) -> None:
        self._said = ""
        self._next = -math.inf

    def say(self, now: float, line: str) -> float:
        """Log a line if it is new and not too soon.

        Args:
            now: seconds of any monotonic clock.
            line: begins with what it is about, up to the first colon.

        Returns:
            When to ask again, for a line that came too soon; else infinity.
        """
        if line == self._said:
            return math.inf
        if line.partition(":")[0] == self._said.partition(":")[0] and now < self._next:
            return self._next
        log.info("%s", line)
        self._said, self._next = line, now + BETWEEN_SECONDS
        return math.inf

    def missed(self, round_: int, absences: Mapping[str, Absence]) -> None:
        """Log who missed a deadline, by name."""
        if len(absences) > MOST_LINES:
            who = some(list(absences))
            log.warning("round %d: %s missed the deadline, and are left out a while", round_, who)
            return
        for name, absence in absences.items():
            log.warning("round %d: %s is %s", round_, name, absence)

    def replaced(self, round_: int, others: Mapping[str, str]) -> None:
        """Log who is asked now, by whose place it is."""
        pairs = [f"{other} for {name}" for name, other in others.items()]
        log.warning("round %d: too few updates; it now asks %s", round_, some(pairs))
