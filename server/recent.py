"""What was lately, for whoever asks how the run goes; nothing of it outlives the process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Final

from common.errors import PrismError
from server.events import Phase
from server.telemetry import quality_of

_ROUNDS: Final = 10
"""Closed rounds whose seconds say how long the others will take."""
_PROBLEMS: Final = 20
"""The most that are kept; strangers can make any number."""


@dataclass(frozen=True)
class Problem:
    """Calls of one caller that ended in the same error.

    Attributes:
        unix_seconds: when the last did so.
        rpc: name of the method.
        caller: name and address.
        code: gRPC's name of the status.
        error: the name of the error's class.
        message: of the last one.
        times: how many.
    """

    unix_seconds: float
    rpc: str
    caller: str
    code: str
    error: str
    message: str
    times: int = 1


class Recent:
    """Problems, the last evaluation, and the pace of the rounds.

    Attributes:
        quality: rounds that the model had that was evaluated last, and its figures; None before.
    """

    def __init__(self) -> None:
        self.quality: tuple[int, dict[str, float]] | None = None
        self._problems: dict[tuple[str, str, str], Problem] = {}
        self._seconds: deque[float] = deque(maxlen=_ROUNDS)
        self._phase: tuple[int, Phase] | None = None
        self._since = time.monotonic()

    def closed(self, seconds: float) -> None:
        """A round is closed, and took so long."""
        self._seconds.append(seconds)

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """The model was compared with images; a line of evaluation.jsonl."""
        self.quality = line["round"], quality_of(line)

    def failed(self, rpc: str, caller: str, host: str, error: PrismError) -> None:
        """A call ended in an error.

        Args:
            rpc: name of the method.
            caller: for a person.
            host: the caller without its port, which is another one each time.
            error: what it ended in.
        """
        name = type(error).__name__
        last = self._problems.pop((rpc, host, name), None)
        said = " ".join(str(error).split())
        problem = Problem(time.time(), rpc, caller, error.status, name, said)
        if last is not None:
            problem = replace(problem, times=last.times + 1)
        self._problems[rpc, host, name] = problem
        while len(self._problems) > _PROBLEMS:
            del self._problems[next(iter(self._problems))]

    def looked(self, now: float, round_: int, phase: Phase) -> None:
        """Where the run stands; called again and again."""
        if (round_, phase) != self._phase:
            self._phase, self._since = (round_, phase), now

    def phase_seconds(self, now: float) -> float:
        """How long the phase has lasted, as far as was looked."""
        return max(0.0, now - self._since)

    def seconds_left(self, rounds: int) -> float | None:
        """What so many rounds will take; None before one was closed."""
        return fmean(self._seconds) * rounds if self._seconds else None

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The last ones, the newest first."""
        return tuple(reversed(self._problems.values()))
