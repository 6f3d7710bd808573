"""What `prism run` starts each process through: a module that ends with the process that began it.

    python -m prism.run.child MODULE WORDS...

Standard input is a pipe whose other end the parent holds and never writes to. The system closes
that end when the parent is gone, however it went; then this process is asked to stop, as the
parent would have asked it. The module itself reads from nothing.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from typing import Final

STOP_SECONDS: Final = 15.0
"""What a process that was asked to stop has for it."""


def main() -> None:
    """Run the module of the command line as `python -m` would."""
    lifeline = os.dup(sys.stdin.fileno())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True, name="lifeline").start()
    module, *words = sys.argv[1:]
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with(lifeline: int) -> None:
    """Wait until nobody can write to a pipe; then end this process."""
    while os.read(lifeline, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
