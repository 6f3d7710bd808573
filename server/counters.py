"""Counting ones across packed masks without unpacking them.

Bit-sliced vertical counters: plane j holds bit j of every parameter's count. Adding a mask
is a ripple-carry of whole machine words, so a client costs d/8 bytes a few times; memory is
d log2(K + 1) / 8 bytes; partial counters of several processes merge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.masks import Mask, unpack


class MaskCounter:
    """Counts of ones per parameter over the masks added so far.

    Attributes:
        count: parameters, n.
        masks: masks added.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.masks = 0
        self._planes: list[Mask] = []

    def add(self, mask: Mask) -> None:
        """Add one mask of n bits.

        Raises:
            ValueError: the mask has another length.
        """
        if len(mask) != self.count:
            raise ValueError(f"a mask of {len(mask)} bits to a counter of {self.count}")
        self._add_plane(mask.copy(), level=0)
        self.masks += 1

    def remove(self, mask: Mask) -> None:
        """Take back one mask that was added.

        Raises:
            ValueError: the mask has another length.
        """
        if len(mask) != self.count:
            raise ValueError(f"a mask of {len(mask)} bits to a counter of {self.count}")
        borrow = mask.copy()
        for plane in self._planes:
            plane ^= borrow
            borrow &= plane
        self.masks -= 1

    def merge(self, other: MaskCounter) -> None:
        """Add everything that another counter of the same n has counted.

        Raises:
            ValueError: the other counter is of another n.
        """
        if other.count != self.count:
            raise ValueError(f"counters of {self.count} and {other.count} parameters")
        for level, plane in enumerate(other._planes):
            self._add_plane(plane.copy(), level)
        self.masks += other.masks

    def counts(self) -> NDArray[np.int32]:
        """(n,) ones per parameter."""
        total = np.zeros(self.count, dtype=np.int32)
        for level, plane in enumerate(self._planes):
            total += unpack(plane).astype(np.int32) << level
        return total

    def _add_plane(self, carry: Mask, level: int) -> None:
        """Add 2 ** level where carry is set; the carry becomes the counter's own."""
        while len(self._planes) < level:
            self._planes.append(Mask(self.count, endian="little"))
        while carry.any():
            if level == len(self._planes):
                self._planes.append(carry)
                return
            plane = self._planes[level]
            overflow = plane & carry
            plane ^= carry
            carry = overflow
            level += 1
