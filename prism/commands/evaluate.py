"""`prism evaluate`: how good a model's pictures are, on named features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.catalogue import SPECS
from common.command_line import DataDir
from common.errors import PrismError


def evaluate(
    model: Annotated[Path, typer.Argument(help="A model.prism.")],
    data: Annotated[str, typer.Option(help=f"Real images: {SPECS}.")],
    data_dir: DataDir = None,
    test: Annotated[
        bool, typer.Option("--test", help="Compare with the test part, not the training part.")
    ] = False,
    features: Annotated[
        str,
        typer.Option(help="lenet (trained on the real images), small, or inception."),
    ] = "lenet",
    samples: Annotated[int, typer.Option(min=10, help="Images of each side, at most.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the generated images.")] = 0,
    partition: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG",
            help="A run's config.toml: compare each client's images with its own classes as well.",
        ),
    ] = None,
    accuracy_score: Annotated[
        bool | None,
        typer.Option(
            "--accuracy-score/--no-accuracy-score",
            help="Train a classifier on generated images and test it on the real test part; "
            "half a minute. On by default for a model that draws classes.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where trained lenet classifiers are kept.")] = Path(
        "build/cache"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compare a model's images with real ones, on named features.

    A distance carries the name of its features, because it means nothing without: "FID
    (Inception)" is the published one, "FD (lenet)" and "FD (small)" are not. What each figure
    means is in docs/quality.md.

    \b
    prism evaluate runs/quickstart/model.prism --data digits
    prism evaluate runs/mnist/model.prism --data mnist --data-dir data --json
    prism evaluate runs/mnist/model.prism --data mnist --data-dir data \\
      --partition runs/mnist/config.toml
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from prism.evaluation import evaluate_model

    try:
        with Console(stderr=True).status("reading the model") as status:
            evaluated = evaluate_model(
                model,
                data,
                data_dir,
                test=test,
                features=features,
                samples=samples,
                seed=seed,
                partition=partition,
                accuracy_score=accuracy_score,
                cache=cache,
                note=lambda text: typer.echo(text, err=True),
                doing=lambda text: status.update(escape(text)),
            )
    except PrismError as error:
        raise SystemExit(f"prism evaluate: {error}") from error
    if as_json:
        typer.echo(json.dumps(evaluated.figures))
        return
    table = Table("measure", "value", box=None)
    for name, value in evaluated.rows():
        table.add_row(name, escape(value))
    Console().print(table)
