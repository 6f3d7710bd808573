"""Counter-based random streams, one per (seed, purpose, round, client, ...).

Whatever both sides must agree on is read as raw Philox words: NumPy guarantees the bit
generator's stream, not the distributions built on it. Everything else takes its seed here
too, so that resuming a run needs no replay of earlier draws.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive(seed: int, purpose: str, *ids: int | str) -> bytes:
    """32 bytes that name one stream: SHA-256 of the seed, the purpose and the ids.

    Args:
        seed: the run's seed, 0 <= seed < 2**64.
        purpose: what the stream is for, such as "weights" or "dither".
        ids: what tells streams of one purpose apart: round, client name, layer.
    """
    parts = [str(seed), purpose, *(f"{type(i).__name__}:{i}" for i in ids)]
    return hashlib.sha256("\x1f".join(parts).encode()).digest()


def derive_seed(seed: int, purpose: str, *ids: int | str) -> int:
    """A 63-bit integer seed for generators whose stream need not be shared."""
    return int.from_bytes(derive(seed, purpose, *ids)[:8], "little") >> 1


def words(n: int, seed: int, purpose: str, *ids: int | str) -> NDArray[np.uint64]:
    """(n,) little-endian 64-bit words of the named stream, equal on every platform."""
    key = np.frombuffer(derive(seed, purpose, *ids)[:16], dtype="<u8").astype(np.uint64)
    raw = np.random.Philox(key=key).random_raw(n)
    return np.asarray(raw, dtype=np.uint64).astype("<u8", copy=False)


def uniform16(n: int, seed: int, purpose: str, *ids: int | str) -> NDArray[np.uint16]:
    """(n,) uniform 16-bit integers of the named stream, equal on every platform."""
    return words(-(-n // 4), seed, purpose, *ids).view("<u2")[:n]


def bits(n: int, seed: int, purpose: str, *ids: int | str) -> NDArray[np.uint8]:
    """(n,) fair bits, 0 or 1, of the named stream, equal on every platform."""
    packed = words(-(-n // 64), seed, purpose, *ids).view(np.uint8)
    return np.unpackbits(packed, count=n, bitorder="little")
