"""What several commands have in common: options that mean the same in each, and their log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.catalogue import IN_DATA_DIR

Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a config key; repeatable."),
]
DataDir = Annotated[Path | None, typer.Option(help=f"Where the files of {IN_DATA_DIR} are.")]
RunData = Annotated[
    str | None, typer.Option(help="Images, as in `prism client`; by default data.name.")
]


def log_to_stderr() -> None:
    """Log what a long-running command does, a line each with the time of day."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
