"""Cells of similar images, which stand for classes where there are no labels.

Each client makes its own: what clients share is not the cells but the coordinates that describe
them (`common.encoders.codes`), so nothing need be agreed on, and a client may come late or alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.cells import CellTable
from common.encoders.codes import codes_of, sketches_of


def find_cells(
    batches: Iterable[Tensor], cells: int, least: int, seed: int
) -> tuple[NDArray[np.int64], CellTable]:
    """Group images by k-means of their sketches; equal arguments give equal cells.

    Sketches take 4 KiB of memory an image.

    Args:
        batches: uint8 images (B, C, S, S), n in all.
        cells: at most so many.
        least: images of a cell; smaller ones are left out.
        seed: of the centres that k-means starts from.

    Returns:
        (n,) the cell of each image from 0, or -1 where it is left out; and for each cell the mean
        code of its images and their number.
    """
    sketches = sketches_of(batches)
    codes = codes_of(sketches)
    different = len(np.unique(codes, axis=0))
    found = _k_means(sketches, min(cells, different), seed)
    counts = np.bincount(found)
    kept = np.flatnonzero(counts >= least)
    number = np.full(len(counts), -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    means = [codes[found == cell].mean(axis=0, dtype=np.float64) for cell in kept]
    return number[found], CellTable.of(means, counts[kept])


def _k_means(points: NDArray[np.float32], cells: int, seed: int) -> NDArray[np.int64]:
    """(n,) the nearest of the centres that were found for each point."""
    # scikit-learn is slow to import, and only runs of cells need it.
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # Several threads would add up in an order that changes from run to run.
    with threadpool_limits(1):
        k_means = KMeans(cells, n_init=1, random_state=seed % 2**32)
        found: NDArray[np.int64] = k_means.fit_predict(points).astype(np.int64)
    return found
