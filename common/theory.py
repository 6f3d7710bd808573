"""What theory says that a mask takes, for the codecs' bytes to be held against.

A mask drawn from a client's theta_k and coded under the state's theta_t takes its
cross-entropy, H(theta_k) + KL(theta_k || theta_t). Two sides with common randomness need no
more than about the divergence, which `flips` comes nearer to (docs/costs.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.state import PROB_ONE, Probs

MOST_BITS: Final = 16.0
"""What the rarest outcome takes: probabilities are multiples of 2**-16."""
_CHUNK: Final = 1 << 16
"""Parameters at a time: what is computed of them stays in the processor's cache."""

Table = NDArray[np.float64]


@dataclass(frozen=True)
class MaskBits:
    """Bits a parameter of one mask, or the mean of several.

    Attributes:
        cross_entropy: of a mask drawn from the client, under the state.
        kl: divergence KL(client || state).

    Raises:
        ProtocolError: there is no mask with these figures.
    """

    cross_entropy: float
    kl: float

    def __post_init__(self) -> None:
        # The difference is an entropy. NaN compares false, so it is refused too.
        if not 0 <= self.kl <= self.cross_entropy <= MOST_BITS:
            raise ProtocolError(
                f"kl {self.kl:g} and cross-entropy {self.cross_entropy:g} are not of one mask: "
                f"bits a parameter lie between 0 and {MOST_BITS:g}"
            )

    @classmethod
    def of(cls, state: Probs, client: Probs) -> MaskBits:
        """Of a mask drawn from the client; both (n,) uint16, n > 0, where 0 reads as 1."""
        one, zero = _surprise()
        cross_entropy = kl = 0.0
        for start in range(0, state.size, _CHUNK):
            p, k = state[start : start + _CHUNK], client[start : start + _CHUNK]
            q = np.maximum(k, 1) / PROB_ONE
            of_one, of_zero = one[p], zero[p]
            # No dot products: threads of a BLAS spin beside training, and sum as they please.
            cross_entropy += float((q * of_one + (1 - q) * of_zero).sum())
            kl += float((q * (of_one - one[k]) + (1 - q) * (of_zero - zero[k])).sum())
        # Rounding may take a divergence that is almost nothing below it.
        return cls(cross_entropy / state.size, max(0.0, kl / state.size))

    @classmethod
    def mean(cls, bits: Iterable[MaskBits | None]) -> MaskBits | None:
        """Of those that there are; None without any."""
        known = [item for item in bits if item is not None]
        if not known:
            return None
        cross_entropy = sum(item.cross_entropy for item in known) / len(known)
        return cls(cross_entropy, sum(item.kl for item in known) / len(known))


def figures(bits: MaskBits | None) -> dict[str, float | None]:
    """By the names that they have on the wire and in every file."""
    return {
        "cross_entropy_bits": None if bits is None else bits.cross_entropy,
        "kl_bits": None if bits is None else bits.kl,
    }


@cache
def _surprise() -> tuple[Table, Table]:
    """(65536,) float64 each: bits that a one and a zero take at probability P / 65536."""
    p = np.maximum(np.arange(PROB_ONE), 1) / PROB_ONE
    return -np.log2(p), -np.log2(1 - p)
