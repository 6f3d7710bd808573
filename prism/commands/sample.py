"""`prism sample`: pictures from an exported model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError, PrismError


def sample(
    model: Annotated[Path, typer.Argument(help="A model.prism.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    out: Annotated[
        Path, typer.Option(help="A .png grid, or .npz with uint8 `images` (n, C, H, W).")
    ] = Path("samples.png"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Equal seeds give equal images.")
    ] = 0,
) -> None:
    """Draw images from a model file; no server, no data needed.

    \b
    prism sample runs/quickstart/model.prism -n 100 --out digits.png
    """
    import numpy as np

    from common.model.export import load_model
    from common.model.grid import Grid

    try:
        if out.suffix not in (".png", ".npz"):
            raise ConfigError(f"--out {out}: end it in .png or .npz")
        images = load_model(model).sample(n, seed)
    except PrismError as error:
        raise SystemExit(f"prism sample: {error}") from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".png":
            Grid.square(images).save(out)
        else:
            np.savez_compressed(out, images=images.numpy())
    except OSError as error:
        raise SystemExit(f"prism sample: cannot write {out}: {error.strerror}") from error
    typer.echo(f"{n} images in {out}")
