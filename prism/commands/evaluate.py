"""`prism evaluate`: how good a model's pictures are, on named features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import DataDir
from common.errors import PrismError


def evaluate(
    model: Annotated[Path, typer.Argument(help="A model.prism.")],
    data: Annotated[
        str,
        typer.Option(help="Real images: digits, mnist, fmnist, cifar10, celeba, or folder:PATH."),
    ],
    data_dir: DataDir = None,
    test: Annotated[
        bool, typer.Option("--test", help="Compare with the test part, not the training part.")
    ] = False,
    features: Annotated[
        str,
        typer.Option(help="lenet (trained on the real images), small, or inception."),
    ] = "lenet",
    samples: Annotated[int, typer.Option(min=10, help="Images of each side, at most.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Of the generated images.")] = 0,
    cache: Annotated[Path, typer.Option(help="Where trained lenet classifiers are kept.")] = Path(
        "build/cache"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compare a model's images with real ones, on named features.

    A Frechet distance carries the name of its features, because it means nothing without:
    "FID (Inception)" is the published one, "FD (lenet)" and "FD (small)" are not.

    \b
    prism evaluate runs/quickstart/model.prism --data digits
    prism evaluate runs/mnist/model.prism --data mnist --data-dir data --json
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from common.data import open_source
    from common.model.export import load_model
    from common.quality import evaluator_of

    try:
        exported = load_model(model)
        source = open_source(data, data_dir, train=not test)
        count = min(samples, len(source))
        shape = exported.architecture
        console = Console(stderr=True)
        with console.status(f"computing {escape(features)} features of {count} real images"):
            judge = evaluator_of(
                source, count, shape.image_size, shape.channels, features, cache=cache
            )
        with console.status(f"judging {samples} generated images"):
            quality = judge.evaluate(exported.sample(samples, seed)).as_dict()
    except PrismError as error:
        raise SystemExit(f"prism evaluate: {error}") from error
    if as_json:
        typer.echo(json.dumps(quality))
        return
    table = Table("measure", "value", box=None)
    for name, value in quality.items():
        if name == "shares":
            value = " ".join(f"{share:.0%}" for share in value)
        table.add_row(
            name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value)
        )
    Console().print(table)
