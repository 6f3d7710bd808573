"""The images that one client trains on, class by class or cell by cell where these are used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.cells import find_cells
from client.loss import Moments, class_moments, real_moments
from common.cells import NO_CELLS, CellTable
from common.config import RunConfig
from common.data import ImageSource, class_labels, load_images
from common.errors import DataError
from common.seeding import derive_seed

log = logging.getLogger("prism.client")
Indices = NDArray[np.int64]
_BATCH = 128
_LEAST: Final = 2
"""Images that have a variance."""


@dataclass(frozen=True)
class LocalImages:
    """The images that this client trains on.

    Attributes:
        config: the run, which says of what size they are.
        source: where they are.
        indices: (n,) which of the source.
        labels: (n,) the class or the cell of each; None where all images are one group.
        cells: codes and sizes of the cells 0, 1, ...; empty where the run has none.
    """

    config: RunConfig
    source: ImageSource
    indices: Indices
    labels: Indices | None = None
    cells: CellTable = NO_CELLS

    @classmethod
    def of(
        cls, config: RunConfig, source: ImageSource, indices: Indices, client: str = ""
    ) -> LocalImages:
        """A client's images: by class or cell, but for those with too few, which it names.

        Under `privacy.mechanism = "moments"` it is all of them, as they come: how many there are
        of a class must decide nothing, and what becomes of one image must not depend on where the
        label of another puts it.

        Args:
            config: the run.
            source: where the images are.
            indices: (m,) which this client holds.
            client: its name; with the run's seed it decides how k-means starts.

        Raises:
            DataError: no class has two images, no cell `data.min_class_size`, or classes are not
                the run's.
        """
        if config.uses_cells:
            return cls(config, source, indices)._in_cells(client)
        labels = class_labels(source, config)
        if labels is None:
            return cls(config, source, indices)
        held = labels[indices]
        if config.privacy.mechanism == "moments":
            return cls(config, source, indices, held)
        counts = np.bincount(held, minlength=len(config.classes))
        least = least_class_size(config, counts)
        if least < config.data.min_class_size:
            log.warning(
                "no class has %d images here (data.min_class_size): keeping all",
                config.data.min_class_size,
            )
        elif few := small_classes(config, counts):
            log.warning("left out, with fewer than %d images (data.min_class_size): %s", least, few)
        kept = counts[held] >= least
        order = np.argsort(held[kept], kind="stable")
        return cls(config, source, indices[kept][order], held[kept][order])

    def __len__(self) -> int:
        """The number of images, n."""
        return len(self.indices)

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels of these images, ascending; none where labels are ignored."""
        return () if self.cells else self.groups

    @property
    def groups(self) -> tuple[int, ...]:
        """Classes or cells of which the images are, ascending; none where they are one group."""
        return () if self.labels is None else tuple(map(int, np.unique(self.labels)))

    def batch_labels(self) -> Iterator[Tensor]:
        """(B,) int64 labels of the batches of all images; none where labels are ignored."""
        if self.labels is not None:
            yield from torch.split(torch.from_numpy(self.labels), _BATCH)

    def _in_cells(self, client: str) -> LocalImages:
        """The same images, grouped by how alike they are."""
        least, most = self.config.data.min_class_size, self.config.data.cells
        if len(self) < least:
            raise DataError(f"{len(self)} images make no cell of {least} (data.min_class_size)")
        log.info("finding cells of %d images", len(self))
        seed = derive_seed(self.config.seed, "cells", client)
        cell, table = find_cells(self.batches(), min(most, len(self) // least), least, seed)
        kept = np.flatnonzero(cell >= 0)
        if left := len(self) - len(kept):
            log.warning("left out %d images in cells of fewer than %d", left, least)
        order = kept[np.argsort(cell[kept], kind="stable")]
        return replace(self, indices=self.indices[order], labels=cell[order], cells=table)

    def batches(self, label: int | None = None) -> Iterator[Tensor]:
        """uint8 batches (B, C, H, W) of all images, or of one class or cell, anew at each call."""
        indices = self.indices if label is None else self.indices[self.labels == label]
        size, channels = self.config.model.image_size, self.config.channels
        for start in range(0, len(indices), _BATCH):
            yield load_images(self.source, indices[start : start + _BATCH], size, channels)


def least_class_size(config: RunConfig, counts: Indices) -> int:
    """The fewest images of a class that a client trains on.

    Args:
        config: a run that uses labels, without private release.
        counts: (classes,) images that the client has of each.

    Raises:
        DataError: no class has two.
    """
    least = config.data.min_class_size
    if (counts >= least).any():
        return least
    # A client with few images of everything has no better classes to keep.
    if counts.max(initial=0) < _LEAST:
        few = small_classes(config, counts) or "there are none"
        raise DataError(
            f"no class has {least} images here (data.min_class_size): {few}; "
            "with data.labels=ignore all images count together"
        )
    return _LEAST


def small_classes(config: RunConfig, counts: Indices) -> str:
    """Classes of which there are some images, but fewer than `data.min_class_size`."""
    return ", ".join(
        f"{config.classes[label]} ({count})"
        for label, count in enumerate(counts)
        if 0 < count < config.data.min_class_size
    )


def local_moments(encoder: nn.Module, images: LocalImages, device: torch.device) -> Moments:
    """What training matches without a privacy mechanism: moments of all images, or by group."""
    if images.labels is None:
        return real_moments(encoder, images.batches(), device)
    by_group = {group: images.batches(group) for group in images.groups}
    moments = class_moments(encoder, by_group, device)
    return replace(moments, classes=images.classes, cells=images.cells)
