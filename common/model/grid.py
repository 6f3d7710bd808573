"""Pictures of many samples: what a model draws, with a row for each of its classes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.files import write_atomically
from common.model.export import ExportedModel

PER_CLASS: Final = 10
"""Images of each class in the picture of a model."""
UNLABELLED: Final = 64
"""Images in the picture of a model that draws no classes."""
_MOST_CLASSES: Final = 50
"""Classes in the picture of a model, at most."""
_LINE: Final = 20
"""Images side by side, at most, unless the picture would be higher than wide."""
_SIDE: Final = 1000
"""Pixels that small grids are enlarged to, so that a person can see them."""
_FONT_SIZE: Final = 18


@dataclass(frozen=True)
class Grid:
    """Images of one size, laid out as a picture.

    Attributes:
        images: (n, C, S, S) uint8, line after line.
        columns: images a line.
        names: of the rows; each stands to the left of equally many lines. May be empty.
    """

    images: Tensor
    columns: int
    names: tuple[str, ...] = ()

    @classmethod
    def square(cls, images: Tensor) -> Grid:
        """About as many lines as columns."""
        return cls(images, max(1, math.ceil(math.sqrt(len(images)))))

    @classmethod
    def rows(cls, rows: Sequence[Tensor], names: Sequence[str] = ()) -> Grid:
        """One row after the other, long ones in several lines, short ones filled up with black.

        Args:
            rows: (n_i, C, S, S) uint8 each.
            names: one for each row, or none at all.
        """
        longest = max(len(row) for row in rows)
        lines = min(math.ceil(longest / _LINE), math.ceil(math.sqrt(longest / len(rows))))
        columns = math.ceil(longest / lines)
        filled = [
            torch.cat([row, row.new_zeros(lines * columns - len(row), *row.shape[1:])])
            for row in rows
        ]
        return cls(torch.cat(filled), columns, tuple(names))

    @classmethod
    def by_class(cls, images: Tensor, labels: NDArray[np.int64], names: Sequence[str]) -> Grid:
        """A row for each class that occurs, in the order in which the labels first name them.

        Args:
            images: (n, C, S, S) uint8.
            labels: (n,) the class of each.
            names: what the labels 0, 1, ... are called.
        """
        classes = dict.fromkeys(labels.tolist())
        rows = [images[torch.from_numpy(labels == label)] for label in classes]
        return cls.rows(rows, [names[label] for label in classes])

    def picture(self) -> Image.Image:
        """The picture, small images enlarged; grey ("L") or colour ("RGB")."""
        grid = image_grid(self.images, self.columns).permute(1, 2, 0).numpy()
        picture = Image.fromarray(grid.squeeze(-1) if grid.shape[-1] == 1 else grid)
        scale = max(1, _SIDE // max(picture.size))
        size = picture.width * scale, picture.height * scale
        picture = picture.resize(size, Image.Resampling.NEAREST)
        return _named(picture, self.names, scale) if self.names else picture

    def save(self, path: Path) -> None:
        """Write the picture as PNG; the file appears whole or not at all."""
        write_atomically(path, png(self.picture()))


def model_grid(model: ExportedModel, seed: int = 0) -> Grid:
    """What a model draws: PER_CLASS images of each class that it learned, or UNLABELLED images.

    Of equal seeds, each place has the same noise in every round, whichever classes are learned
    by then, so pictures of a run can be compared.
    """
    if not model.class_names:
        return Grid.square(model.sample(UNLABELLED, seed))
    shown = list(model.learned[:_MOST_CLASSES])
    source = torch.Generator().manual_seed(seed)
    shape = PER_CLASS, len(model.class_names), model.architecture.latent
    noise = torch.randn(shape, generator=source)[:, shown].flatten(0, 1)
    labels = np.tile(shown, PER_CLASS)
    images = model.sample(len(labels), labels=labels, noise=noise)
    return Grid.by_class(images, labels, model.class_names)


def image_grid(images: Tensor, columns: int) -> Tensor:
    """Tile (n, C, H, W) uint8 images into one (C, height, width), two pixels apart."""
    n, channels, height, width = images.shape
    rows = max(1, -(-n // columns))
    cell_h, cell_w = height + 2, width + 2
    grid = torch.zeros(channels, rows * cell_h + 2, columns * cell_w + 2, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = 2 + i // columns * cell_h, 2 + i % columns * cell_w
        grid[:, top : top + height, left : left + width] = image
    return grid


def png(picture: Image.Image) -> bytes:
    """The content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


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
