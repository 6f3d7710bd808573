"""What every data set looks like from outside, and images on their way to the encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from common.errors import DataError

_BATCH: Final = 4096
_LUMA: Final = (0.299, 0.587, 0.114)


class ImageSource(ABC):
    """Images that are read when they are asked for.

    Attributes:
        name: what to call it in messages.
        labels: (n,) int64 classes from 0, or None where the images have none.
        class_names: what the classes are called; empty where there are no labels.
    """

    name: str
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int:
        """The number of images, n."""

    @abstractmethod
    def batches(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Read images in the order of `indices`.

        Args:
            indices: (m,) positions in [0, n).

        Yields:
            (k, H, W, C) uint8, C 1 or 3; k consecutive images that share one size.

        Raises:
            DataError: an image cannot be read.
        """

    def unreadable(self, indices: NDArray[np.int64]) -> Iterator[str]:
        """Read images one by one; a line for each that cannot be read."""
        for index in range(len(indices)):
            try:
                for _ in self.batches(indices[index : index + 1]):
                    pass
            except DataError as error:
                yield str(error)


class ArraySource(ImageSource):
    """Images of one size that are held in memory.

    Args:
        name: what to call it in messages.
        images: (n, H, W) or (n, H, W, 3) uint8.
        labels: (n,) classes from 0, or None.
        class_names: what the classes are called.

    Raises:
        DataError: there are no images, or not one label each.
    """

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None = None,
        class_names: tuple[str, ...] = (),
    ) -> None:
        if not len(images):
            raise DataError(f"{name}: there are no images")
        if labels is not None and len(labels) != len(images):
            raise DataError(f"{name}: {len(images)} images but {len(labels)} labels")
        self.name = name
        self.labels = labels
        self.class_names = class_names
        self._images = images if images.ndim == 4 else images[..., None]

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """See `ImageSource.batches`."""
        for start in range(0, len(indices), _BATCH):
            yield self._images[indices[start : start + _BATCH]]


def load_images(
    source: ImageSource, indices: NDArray[np.int64], image_size: int, channels: int
) -> torch.Tensor:
    """Read images at the size and depth that a run works with.

    The largest centred square is cut out of each image and resized, antialiased. Colour
    becomes grey by the luma weights of ITU-R BT.601; grey becomes colour by replication.

    Args:
        source: where the images are.
        indices: (m,) positions in [0, len(source)).
        image_size: side of the result in pixels.
        channels: 1 or 3.

    Returns:
        (m, channels, image_size, image_size) uint8.

    Raises:
        DataError: an index lies outside the source, or an image cannot be read.
    """
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(source):
        raise DataError(f"{source.name} has {len(source)} images; index out of range")
    out = torch.empty((len(indices), channels, image_size, image_size), dtype=torch.uint8)
    filled = 0
    for batch in source.batches(indices):
        resized = _fit(torch.from_numpy(np.ascontiguousarray(batch)), image_size, channels)
        out[filled : filled + len(resized)] = resized
        filled += len(resized)
    return out


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Pixels as the models see them: uint8 [0, 255] -> float32 [-1, 1], same shape."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_unit`: float [-1, 1], clamped -> uint8 [0, 255], same shape."""
    return images.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def _fit(batch: torch.Tensor, size: int, channels: int) -> torch.Tensor:
    """(k, H, W, 1|3) uint8 -> (k, channels, size, size) uint8."""
    height, width, depth = batch.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = batch[:, top : top + side, left : left + side].movedim(3, 1).to(torch.float32)
    if channels < depth:
        pixels = (pixels * pixels.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if side != size:
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).expand(-1, channels, -1, -1)
