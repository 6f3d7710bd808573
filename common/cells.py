"""Tables of cells: what stands for classes where images have no labels.

A client cuts its own images into cells of similar ones. A cell is described by the mean of its
images' codes (`common.encoders.codes`) and their number; a client's table of them is all that it
says about its images besides its updates, and a model draws by the tables of all clients.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import PayloadError

CODE_SIZE: Final = 16
"""Entries of a code."""
LARGEST_ENTRY: Final = 256.0
"""Of a code; those of photographs and of digits are below 20."""
LARGEST_COUNT: Final = 10**8
"""Images of a cell."""
_ROW: Final = np.dtype([("code", "<f2", CODE_SIZE), ("count", "<u4")])
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio."""


@dataclass(frozen=True)
class CellTable:
    """Codes and image counts of cells; equal tables have equal bytes.

    Attributes:
        content: rows of 36 bytes, as they travel: 16 float16 and a count, little-endian.
    """

    content: bytes = b""

    @classmethod
    def of(cls, codes: ArrayLike, counts: ArrayLike) -> CellTable:
        """A table of m cells.

        Args:
            codes: (m, 16), which are rounded to float16.
            counts: (m,) images of each.

        Raises:
            PayloadError: no table can have these values; see `read`.
        """
        codes, counts = np.asarray(codes, np.float32), np.asarray(counts, np.int64)
        if codes.shape != (*counts.shape, CODE_SIZE) or counts.ndim != 1:
            raise PayloadError(f"codes {codes.shape} and counts {counts.shape} make no table")
        _check(codes, counts)
        rows = np.empty(len(counts), _ROW)
        rows["code"], rows["count"] = codes, counts
        return cls(rows.tobytes())

    @classmethod
    def read(cls, content: bytes) -> CellTable:
        """Check the bytes of a table.

        Raises:
            PayloadError: the length fits no rows, an entry is not finite or too large, or a
                count is zero or too large.
        """
        if len(content) % _ROW.itemsize:
            raise PayloadError(f"a table of cells has rows of {_ROW.itemsize} bytes")
        table = cls(content)
        _check(table.codes, table.counts)
        return table

    @classmethod
    def union(cls, tables: Iterable[CellTable]) -> CellTable:
        """The rows of all tables, in their order."""
        return cls(b"".join(table.content for table in tables))

    def __len__(self) -> int:
        """The number of cells, m."""
        return len(self.content) // _ROW.itemsize

    @property
    def codes(self) -> NDArray[np.float32]:
        """(m, 16) what each cell is described by."""
        return np.frombuffer(self.content, _ROW)["code"].astype(np.float32)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(m,) images of each cell."""
        return np.frombuffer(self.content, _ROW)["count"].astype(np.int64)

    @property
    def largest(self) -> CellTable:
        """The cell of the most images alone; the empty table of an empty one."""
        if not self.content:
            return self
        row = int(self.counts.argmax())
        return CellTable.of(self.codes[[row]], self.counts[[row]])

    def drawn(self, n: int, start: int = 0) -> NDArray[np.float32]:
        """(n, 16) codes of images number `start` and following, cells in the shares of counts.

        Image i takes the cell at i times the golden ratio, modulo 1, of all images in a row: a
        low-discrepancy sequence, so that any stretch of images has the shares almost exactly.
        An empty table, of a model that nobody has trained, gives zeros.
        """
        if not self.content:
            return np.zeros((n, CODE_SIZE), np.float32)
        ends = np.cumsum(self.counts)
        with np.errstate(over="ignore"):
            at = (np.arange(start, start + n, dtype=np.uint64) * _GOLDEN) >> np.uint64(11)
        images = (at.astype(np.float64) / 2.0**53 * ends[-1]).astype(np.int64)
        drawn: NDArray[np.float32] = self.codes[np.searchsorted(ends, images, side="right")]
        return drawn


def _check(codes: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
    # NaN compares as false.
    if not (np.abs(codes) <= LARGEST_ENTRY).all():
        raise PayloadError(f"an entry of a cell's code is not within {LARGEST_ENTRY:g} of 0")
    if not ((counts >= 1) & (counts <= LARGEST_COUNT)).all():
        raise PayloadError(f"a cell has 1 to {LARGEST_COUNT} images")


NO_CELLS: Final = CellTable()
