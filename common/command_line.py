"""Options that mean the same in several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.catalogue import IN_DATA_DIR

Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a config key; repeatable."),
]
DataDir = Annotated[Path | None, typer.Option(help=f"Where the files of {IN_DATA_DIR} are.")]
MetricsAddress = Annotated[
    str | None,
    typer.Option(
        envvar="PRISM_METRICS",
        help="HOST:PORT where Prometheus may read figures, by plain HTTP at /metrics; port 0 takes "
        "a free one.",
    ),
]
RunData = Annotated[
    str | None, typer.Option(help="Images, as in `prism client`; by default data.name.")
]
