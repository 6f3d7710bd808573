"""Who would hold what of a data set that is divided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from client.local_images import least_class_size, small_classes
from client.mechanisms import check_delta
from common.config import RunConfig
from common.data import ImageSource, class_labels, label_histogram, partition, split_by
from common.errors import DataError, PrismError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Holdings:
    """The clients' parts of one data set.

    Attributes:
        parts: per client, ascending positions in the source.
        classes: what the columns of `counts` are called; the run's classes, else the source's own;
            none where nobody knows any.
        counts: (clients, classes) images; no columns without classes.
    """

    parts: tuple[Indices, ...]
    classes: tuple[str, ...]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, config: RunConfig, source: ImageSource) -> Holdings:
        """Cut the images as every client will; raises DataError if that cannot be done."""
        parts = tuple(partition(split_by(source, config), config.data, config.seed))
        labels, names = class_labels(source, config), config.classes
        if labels is None:
            labels, names = source.labels, source.class_names
        if labels is None:
            return cls(parts, (), np.zeros((len(parts), 0), np.int64))
        return cls(parts, names, label_histogram(parts, labels, len(names)))

    def table(self) -> Table:
        """A row for each client: its images of each class, and in all."""
        table = Table("client", *map(escape, self.classes), "images", box=None)
        for client, (part, counts) in enumerate(zip(self.parts, self.counts, strict=True)):
            cells = [str(count) if count else "." for count in counts.tolist()]
            table.add_row(str(client), *cells, str(len(part)))
        return table

    def check(self, config: RunConfig) -> None:
        """Look for clients that would refuse their part, without reading an image.

        Raises:
            DataError: there are some; how many, and what the first would say.
        """
        refusals: list[str] = []
        for client, (part, counts) in enumerate(zip(self.parts, self.counts, strict=True)):
            try:
                _check_part(config, len(part), counts)
            except PrismError as error:
                refusals.append(f"client {client}: {error}")
        if refusals:
            raise DataError(
                f"{len(refusals)} of {len(self.parts)} clients could not train; {refusals[0]}"
            )

    def left_out(self, config: RunConfig) -> Iterator[str]:
        """For each client that would leave classes out, which; with their images."""
        if not config.classes or config.privacy.mechanism == "moments":
            return
        for client, counts in enumerate(self.counts):
            if (counts >= config.data.min_class_size).any() and (
                few := small_classes(config, counts)
            ):
                yield f"client {client}: {few}"


def _check_part(config: RunConfig, images: int, counts: Indices) -> None:
    if config.uses_cells and images < (least := config.data.min_class_size):
        raise DataError(f"{images} images make no cell of {least} (data.min_class_size)")
    if config.classes and config.privacy.mechanism != "moments":
        least_class_size(config, counts)
    if config.privacy.mechanism != "none":
        check_delta(config.privacy.delta, images)
