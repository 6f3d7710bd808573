"""The images that one client trains on, class by class where labels are used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.loss import Moments, class_moments, real_moments
from common.config import RunConfig
from common.data import ImageSource, class_labels, load_images
from common.errors import DataError

log = logging.getLogger("prism.client")
Indices = NDArray[np.int64]
_BATCH = 128


@dataclass(frozen=True)
class LocalImages:
    """The images that this client trains on.

    Attributes:
        config: the run, which says of what size they are.
        source: where they are.
        indices: (n,) which of the source.
        labels: (n,) the class of each, or None where labels are ignored.
    """

    config: RunConfig
    source: ImageSource
    indices: Indices
    labels: Indices | None = None

    @classmethod
    def of(cls, config: RunConfig, source: ImageSource, indices: Indices) -> LocalImages:
        """A client's images: by class, but for classes with too few of them, which it names.

        Under `privacy.mechanism = "moments"` it is all of them, as they come: how many there are
        of a class must decide nothing, and what becomes of one image must not depend on where the
        label of another puts it.

        Args:
            config: the run.
            source: where the images are.
            indices: (m,) which this client holds.

        Raises:
            DataError: no class has `data.min_class_size` images, or classes are not the run's.
        """
        labels = class_labels(source, config)
        if labels is None:
            return cls(config, source, indices)
        least, held = config.data.min_class_size, labels[indices]
        if config.privacy.mechanism == "moments":
            return cls(config, source, indices, held)
        counts = np.bincount(held, minlength=len(config.classes))
        few = [
            f"{config.classes[label]} ({count})"
            for label, count in enumerate(counts)
            if 0 < count < least
        ]
        if few:
            log.warning("left out, with fewer than %d images: %s", least, ", ".join(few))
        kept = counts[held] >= least
        if not kept.any():
            raise DataError(
                f"no class has {least} images here (data.min_class_size): {', '.join(few)}"
            )
        order = np.argsort(held[kept], kind="stable")
        return cls(config, source, indices[kept][order], held[kept][order])

    def __len__(self) -> int:
        """The number of images, n."""
        return len(self.indices)

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels of these images, ascending; none where labels are ignored."""
        return () if self.labels is None else tuple(map(int, np.unique(self.labels)))

    def batch_labels(self) -> Iterator[Tensor]:
        """(B,) int64 labels of the batches of all images; none where labels are ignored."""
        if self.labels is not None:
            yield from torch.split(torch.from_numpy(self.labels), _BATCH)

    def batches(self, label: int | None = None) -> Iterator[Tensor]:
        """uint8 batches (B, C, H, W) of all images, or of one class, anew at each call."""
        indices = self.indices if label is None else self.indices[self.labels == label]
        size, channels = self.config.model.image_size, self.config.channels
        for start in range(0, len(indices), _BATCH):
            yield load_images(self.source, indices[start : start + _BATCH], size, channels)


def local_moments(encoder: nn.Module, images: LocalImages, device: torch.device) -> Moments:
    """What training matches without a privacy mechanism: moments of all images, or by class."""
    if images.labels is None:
        return real_moments(encoder, images.batches(), device)
    by_class = {label: images.batches(label) for label in images.classes}
    return class_moments(encoder, by_class, device)
