"""Being told to stop, at any moment: by Ctrl-C, by SIGTERM, or by a terminal that is closed.

Nothing is raised: an exception between any two instructions would leave processes behind or end in
a traceback. Imports little, since it is there before anything else is.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STATUS: Final = 130
"""What a shell takes for ended by Ctrl-C."""


class Interrupt:
    """Handles the signals during a block.

    At first one of them ends the process at once; within `orderly` only the second one does, and
    the first is for the block to notice. Either way the command that resumes the run is said, once.

    Attributes:
        asked: whether the process was told to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._orderly = False
        self._said = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            # A shell has SIGINT ignored by what it runs in the background, nohup SIGHUP.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._told)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # Who was told to stop is about to end, and has said what there is to say.
            signal.signal(number, signal.SIG_IGN if self.asked else handler)

    @contextmanager
    def orderly(self) -> Iterator[None]:
        """A block that looks at `asked` and then ends; what it started is ended by then."""
        self._orderly = True
        try:
            yield
        finally:
            self._orderly = False

    def end_if_asked(self) -> None:
        """End this process with the line that resumes the run, if it was told to stop."""
        if self.asked:
            self._say()
            raise SystemExit(_STATUS)

    def _told(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.asked or not self._orderly:
            self._say()
            # The processes of the run notice that this one is gone, and end.
            os._exit(_STATUS)
        self.asked = True

    def _say(self) -> None:
        if self._said:
            return
        self._said = True
        # Not by sys.stderr: it may be in the middle of something.
        with suppress(OSError):
            os.write(2, f"stopped; to go on: {_command()}\n".encode())


def _command() -> str:
    """What the person typed, as it can be typed again."""
    path, *words = sys.argv
    if Path(path).name == "__main__.py":
        program = [sys.executable, "-m", "prism"]
    else:
        found = shutil.which("prism")
        same = found is not None and os.path.realpath(found) == os.path.realpath(path)
        program = ["prism" if same else path]
    return shlex.join([*program, *words])
