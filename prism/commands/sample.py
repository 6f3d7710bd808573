"""`prism sample`: pictures from an exported model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.errors import PrismError


def sample(
    model: Annotated[Path, typer.Argument(help="A model.prism.")],
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="A class to draw, by name or number; repeatable. By default all that some client "
            "taught.",
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="Images in all, the classes in turn.")
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Images of each class; 10 where nothing is said.")
    ] = None,
    interpolate: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="STEPS", help="Go from one noise to another, the same for each class."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="A .png with a row for each class; an .npz of uint8 `images` (n, C, S, S), "
            "`labels` (n,) and `class_names`; or a folder, for PNGs in a sub-folder for each class."
        ),
    ] = Path("samples.png"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Equal seeds give equal images.")
    ] = 0,
) -> None:
    """Draw images from a model file; no server, no data needed.

    \b
    prism sample runs/quickstart/model.prism --out digits.png
    prism sample runs/quickstart/model.prism --class 7 --class 4 -n 100 --out sevens-and-fours.png
    prism sample runs/quickstart/model.prism --per-class 100 --out digits
    prism sample runs/quickstart/model.prism --interpolate 8 --out between.png
    """
    from common.model.export import load_model
    from prism.drawing import Wanted, draw, notes
    from prism.outputs import writer_of

    try:
        wanted = Wanted(tuple(classes or ()), n, per_class, interpolate)
        write = writer_of(out)
        generator = load_model(model)
        drawn = draw(generator, wanted, seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        write(drawn, out)
    except PrismError as error:
        raise SystemExit(f"prism sample: {error}") from error
    except OSError as error:
        reason = error.strerror or error
        raise SystemExit(f"prism sample: cannot write {out}: {reason}") from error
    for note in notes(generator, wanted, drawn):
        typer.echo(f"prism sample: {note}", err=True)
    typer.echo(f"{len(drawn.images)} images in {out}")
