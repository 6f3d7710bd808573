"""Processes of a local run: started together, none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import PrismError
from prism.run.child import STOP_SECONDS

_TAIL_BYTES: Final = 4096
"""Of a log, looked at for its last line."""


class Member:
    """One started process and where it writes.

    Args:
        name: what to call it.
        command: a module to run and its arguments.
        log: the file that it writes to.
        lifeline: the reading end of a pipe; the process ends when the writing end is closed.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, lifeline: int) -> None:
        self.name, self.log = name, log
        with log.open("ab") as stream:
            # What stands there was written by a previous process.
            self._start = stream.tell()
            # -P: a file or folder of the same name in the current directory must not run instead
            # of ours. Its own session: Ctrl-C in the terminal reaches this process alone, which
            # then stops the others in order.
            self.process = subprocess.Popen(  # noqa: S603 - this project's own modules
                [sys.executable, "-P", "-m", "prism.run.child", *command],
                stdin=lifeline,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def raise_if_failed(self) -> None:
        """Raises PrismError if it ended other than well: by which signal, or its last line."""
        code = self.process.poll()
        if not code:
            return
        if code < 0:
            names = {number.value: number.name for number in signal.Signals}
            killer = names.get(-code, f"signal {-code}")
            raise PrismError(f"{self.name} was killed by {killer} (what it wrote: {self.log})")
        last = self.last_line() or f"exit code {code}"
        raise PrismError(f"{self.name} stopped: {last} (all of it: {self.log})")

    def last_line(self) -> str:
        """What it wrote last; empty before it wrote anything."""
        with self.log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(self._start, size - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class Starter:
    """Starts processes that write to `logs`, and knows in which order they are to stop."""

    def __init__(self, logs: Path, lifeline: int) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._lifeline = lifeline
        self.members: list[Member] = []
        self.last: list[Member] = []

    def __call__(self, name: str, command: Sequence[str], *, last: bool = False) -> Member:
        """Start a process; `last` ones are stopped after all others."""
        member = Member(name, command, self._logs / f"{name}.log", self._lifeline)
        (self.last if last else self.members).append(member)
        return member


@contextmanager
def processes(logs: Path) -> Iterator[Starter]:
    """Start processes; whatever happens, none is left when the block ends.

    Should this very process be killed, the others notice that the pipe is closed.
    """
    lifeline, held = os.pipe()
    starter = Starter(logs, lifeline)
    try:
        yield starter
    finally:
        try:
            _stop(starter.members)
        finally:
            _stop(starter.last)
            os.close(held)
            os.close(lifeline)


def _stop(members: Sequence[Member]) -> None:
    # Clients first, so that they can say goodbye to a server that still listens.
    for member in reversed(members):
        if member.process.poll() is None:
            # A shell has SIGINT ignored by what it runs in the background.
            member.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for member in members:
        try:
            member.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            member.process.kill()
            member.process.wait()
