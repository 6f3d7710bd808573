"""Pictures of many samples."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.files import write_atomically

_SIDE: Final = 640
"""Pixels that small grids are enlarged to, so that a person can see them."""
_FONT_SIZE: Final = 18


def image_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Tile (n, C, H, W) uint8 images into one (C, height, width), two pixels apart."""
    n, channels, height, width = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(n)))
    rows = max(1, -(-n // columns))
    cell_h, cell_w = height + 2, width + 2
    grid = torch.zeros(channels, rows * cell_h + 2, columns * cell_w + 2, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = 2 + i // columns * cell_h, 2 + i % columns * cell_w
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_grid(
    images: Tensor, path: Path, columns: int | None = None, row_names: Sequence[str] = ()
) -> None:
    """Write a PNG of the grid, small images enlarged.

    Args:
        images: (n, C, H, W) uint8, row after row.
        path: where to write; the file appears whole or not at all.
        columns: images a row; by default as many as rows.
        row_names: written to the left of each row.
    """
    grid = image_grid(images, columns).permute(1, 2, 0).numpy()
    picture = Image.fromarray(grid.squeeze(-1) if grid.shape[-1] == 1 else grid)
    scale = max(1, _SIDE // max(picture.size))
    picture = picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
    if row_names:
        picture = _named(picture, row_names, scale)
    content = io.BytesIO()
    picture.save(content, format="PNG")
    write_atomically(path, content.getvalue())


def _named(picture: Image.Image, names: Sequence[str], scale: int) -> Image.Image:
    """The picture with a margin on the left in which each row has its name."""
    font = ImageFont.load_default(_FONT_SIZE)
    margin = 2 * _FONT_SIZE + max(math.ceil(font.getlength(name)) for name in names)
    wide = Image.new("RGB", (picture.width + margin, picture.height), "black")
    wide.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(wide)
    row = (picture.height - 2 * scale) / len(names)
    for i, name in enumerate(names):
        middle = scale + (i + 0.5) * row
        draw.text((margin - _FONT_SIZE, middle), name, fill="white", font=font, anchor="rm")
    return wide
