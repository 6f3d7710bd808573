"""Pictures of many samples."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from common.files import write_atomically


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


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write a PNG of the grid, small images enlarged so that a person can see them."""
    grid = image_grid(images, columns).permute(1, 2, 0).numpy()
    picture = Image.fromarray(grid.squeeze(-1) if grid.shape[-1] == 1 else grid)
    scale = max(1, 640 // max(picture.size))
    picture = picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
    content = io.BytesIO()
    picture.save(content, format="PNG")
    write_atomically(path, content.getvalue())
