"""`python -m prism`, and the `prism` command."""

from __future__ import annotations

import signal
import sys

from prism.run.interrupt import Interrupt


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded ends it without a traceback."""
    if sys.argv[1:2] == ["run"]:
        Interrupt().__enter__()
    elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What takes long to import comes after that.
    from prism.command_line import build

    build()()


if __name__ == "__main__":
    main()
