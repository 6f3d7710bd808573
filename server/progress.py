"""The log's lines about what a run waits for: each change once, and not one for each client."""

from __future__ import annotations

import logging
import math
from typing import Final

BETWEEN_SECONDS: Final = 2.0
"""Between two lines about the same round."""

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
