"""The whole state: for clients that join late, slept, or hold something else."""

from __future__ import annotations

from typing import Final

import numpy as np

from common.codecs import coder
from common.codecs.plain import check_length
from common.errors import PayloadError
from common.masks import from_bytes, pack, unpack
from common.rpc.prism.v1 import federation_pb2 as pb
from common.state import Scores

_HEADER_BYTES: Final = 5
_SHIFTS: Final = (0, 2, 4, 6, 8)


class KeyframeCodec:
    """Scores as they are, little-endian."""

    name = "keyframe"
    wire: int = pb.STATE_CODEC_KEYFRAME

    def encode(self, scores: Scores) -> bytes:
        """The payload of (n,) int16 scores."""
        return scores.astype("<i2", copy=False).tobytes()

    def decode(self, payload: bytes, n: int) -> Scores:
        """(n,) int16 scores.

        Raises:
            PayloadError: not the length of n scores.
        """
        check_length(payload, n, 2, self.name)
        return np.frombuffer(payload, dtype="<i2").astype(np.int16)

    def max_bytes(self, n: int) -> int:
        """Length of every payload of n scores."""
        return 2 * n


class KeyframeEntropyCodec:
    """High bits of the scores under their histogram, low bits as they are.

    How many bits are low is whatever is shortest, for low bits are noise in most states, and
    in a state that took few distinct values there are none. The payload is the shift (one
    byte), the lowest and highest high part (int16 each), the low bits as bit planes, then the
    high parts as `coder` makes them, then the checksum.
    """

    name = "keyframe-entropy"
    wire: int = pb.STATE_CODEC_KEYFRAME_ENTROPY

    def encode(self, scores: Scores) -> bytes:
        """The payload of (n,) int16 scores."""
        shift = _best_shift(scores)
        high = scores >> np.int16(shift)
        lowest, highest = (int(high.min()), int(high.max())) if high.size else (0, 0)
        body = bytes([shift]) + np.array([lowest, highest], dtype="<i2").tobytes()
        body += b"".join(
            pack((scores >> np.int16(bit) & 1).astype(np.uint8)).tobytes() for bit in range(shift)
        )
        symbols = high.astype(np.int32) - lowest
        body += coder.encode(symbols, _one_context(high.size), 1, highest - lowest + 1)
        return coder.seal(body, self._content(scores), scores.size)

    def decode(self, payload: bytes, n: int) -> Scores:
        """(n,) int16 scores.

        Raises:
            PayloadError: the payload is not one that `encode` made of n scores.
        """
        body = coder.unseal(payload, self.max_bytes(n), self.name)
        shift = body[0] if body else 0
        size = -(-n // 8)
        start = _HEADER_BYTES + shift * size
        if len(body) < start or shift not in _SHIFTS:
            raise PayloadError(f"{self.name} payload of {len(payload)} bytes is truncated")
        lowest, highest = (int(x) for x in np.frombuffer(body[1:_HEADER_BYTES], dtype="<i2"))
        if not -32768 >> shift <= lowest <= highest <= 32767 >> shift:
            raise PayloadError(f"{self.name} payload has an impossible range of scores")
        symbols = coder.decode(body[start:], _one_context(n), 1, highest - lowest + 1)
        scores: Scores = ((symbols + lowest) << shift).astype(np.int16)
        for bit in range(shift):
            plane = _HEADER_BYTES + bit * size
            bits = unpack(from_bytes(body[plane : plane + size], n))
            scores |= bits.astype(np.int16) << np.int16(bit)
        coder.verify(payload, self._content(scores), scores.size, self.name)
        return scores

    def max_bytes(self, n: int) -> int:
        """Longest payload of n scores."""
        return coder.bound(n, 1, 65536) + _HEADER_BYTES + max(_SHIFTS)

    def _content(self, scores: Scores) -> bytes:
        return scores.astype("<i2", copy=False).tobytes()


def _one_context(n: int) -> coder.Keys:
    return np.zeros(n, dtype=np.uint16)


def _best_shift(scores: Scores) -> int:
    """The number of low bits that makes the shortest payload."""
    counts = np.bincount(scores.view(np.uint16) ^ np.uint16(0x8000), minlength=65536)
    costs = []
    for shift in _SHIFTS:
        table = counts.reshape(-1, 1 << shift).sum(axis=1)
        # A level of the histogram takes about six bits, a value that is absent one.
        header = 6 * int((table > 0).sum()) + len(table) // 8
        costs.append(coder.total_bits(table[None, :]) + shift * scores.size + header)
    return _SHIFTS[costs.index(min(costs))]
