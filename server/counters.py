"""Counting ones across packed masks without unpacking them.

Bit-sliced vertical counters: plane j holds bit j of every parameter's count. Adding a mask
is a ripple-carry of whole 64-bit words, so a client costs d/8 bytes a few times; memory is
d log2(K + 1) / 8 bytes; partial counters of several processes merge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Packed = NDArray[np.uint8]


class MaskCounter:
    """Counts of ones per parameter over the masks added so far.

    Attributes:
        count: parameters, n.
        masks: masks added.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.masks = 0
        self._words = -(-count // 64)
        self._planes: list[NDArray[np.uint64]] = []

    def add(self, mask: Packed) -> None:
        """Add one packed mask of ceil(n / 8) bytes, padding bits zero.

        Raises:
            ValueError: the mask has another length.
        """
        if mask.dtype != np.uint8 or mask.size != -(-self.count // 8):
            raise ValueError(f"a packed mask of {self.count} bits, not {mask.size} bytes")
        padded = np.zeros(self._words * 8, dtype=np.uint8)
        padded[: mask.size] = mask
        self._add_plane(padded.view(np.uint64), level=0)
        self.masks += 1

    def merge(self, other: MaskCounter) -> None:
        """Add everything that another counter of the same n has counted."""
        if other.count != self.count:
            raise ValueError(f"counters of {self.count} and {other.count} parameters")
        for level, plane in enumerate(other._planes):
            self._add_plane(plane.copy(), level)
        self.masks += other.masks

    def counts(self) -> NDArray[np.int32]:
        """(n,) ones per parameter."""
        total = np.zeros(self.count, dtype=np.int32)
        for level, plane in enumerate(self._planes):
            ones = np.unpackbits(plane.view(np.uint8), count=self.count, bitorder="little")
            total += ones.astype(np.int32) << level
        return total

    def _add_plane(self, carry: NDArray[np.uint64], level: int) -> None:
        while len(self._planes) < level:
            self._planes.append(np.zeros(self._words, dtype=np.uint64))
        while carry.any():
            if level == len(self._planes):
                self._planes.append(carry)
                return
            plane = self._planes[level]
            overflow = plane & carry
            np.bitwise_xor(plane, carry, out=plane)
            carry = overflow
            level += 1
