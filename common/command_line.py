"""What several commands have in common: options that mean the same in each, and their log."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from common.catalogue import IN_DATA_DIR
from common.files import failure_of

Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a config key; repeatable."),
]
DataDir = Annotated[Path | None, typer.Option(help=f"Where the files of {IN_DATA_DIR} are.")]
RunData = Annotated[
    str | None, typer.Option(help="Images, as in `prism client`; by default data.name.")
]


log = logging.getLogger(__name__)


def log_to_stderr() -> None:
    """Log what a long-running command does, a line each with the time of day."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    # What threads of libraries could not write, or files that are closed late, is no bug here.
    threading.excepthook = _failed_in_a_thread
    sys.unraisablehook = _failed_in_passing


def _failed_in_a_thread(failed: threading.ExceptHookArgs) -> None:
    if isinstance(failed.exc_value, OSError):
        log.error("could not write: %s", failure_of(failed.exc_value))
    else:
        threading.__excepthook__(failed)


def _failed_in_passing(failed: sys.UnraisableHookArgs) -> None:
    if isinstance(failed.exc_value, OSError):
        log.error("could not write: %s", failure_of(failed.exc_value))
    else:
        sys.__unraisablehook__(failed)
