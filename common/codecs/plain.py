"""Codecs that spend a fixed number of bytes: raw masks, scores, weights."""

from __future__ import annotations

import numpy as np

from common.codecs.base import CodecContext, Weights
from common.errors import PayloadError
from common.masks import Mask, check_size, from_bytes, pack
from common.rpc.prism.v1 import federation_pb2 as pb
from common.state import SCORE_UNIT, Probs, Scores


def check_length(payload: bytes, n: int, itemsize: int, what: str) -> None:
    """Refuse a payload that is not n items long.

    Raises:
        PayloadError: naming both lengths.
    """
    if len(payload) != n * itemsize:
        raise PayloadError(
            f"{what} payload of {len(payload)} bytes; {n} values take {n * itemsize}"
        )


def sample_private(probs: Probs, private: np.random.Generator) -> Mask:
    """Draw M ~ Bernoulli(probs / 65536) from private randomness; (n,) uint16 -> n bits."""
    u = private.integers(0, 1 << 16, size=probs.size, dtype=np.uint16)
    return pack(u < probs)


class RawCodec:
    """One bit a parameter: the baseline, and what secure aggregation starts from."""

    name = "raw"
    wire: int = pb.CODEC_RAW

    def sample(self, probs: Probs, context: CodecContext, private: np.random.Generator) -> Mask:  # noqa: ARG002
        """See MaskCodec."""
        return sample_private(probs, private)

    def reference(self, context: CodecContext) -> Mask | None:  # noqa: ARG002
        """No control variate."""
        return None

    def encode(self, mask: Mask, context: CodecContext) -> bytes:
        """See MaskCodec."""
        check_size(mask, context.size)
        return mask.tobytes()

    def decode(self, payload: bytes, context: CodecContext) -> Mask:
        """See MaskCodec."""
        return from_bytes(payload, context.size)

    def max_bytes(self, n: int) -> int:
        """See MaskCodec; every payload has this length."""
        return -(-n // 8)


class Int16Codec:
    """Scores as they are, little-endian."""

    name = "int16"
    wire: int = pb.CODEC_INT16

    def encode(self, scores: Scores) -> bytes:
        """See ScoreCodec."""
        return scores.astype("<i2", copy=False).tobytes()

    def decode(self, payload: bytes, n: int) -> Scores:
        """See ScoreCodec."""
        check_length(payload, n, 2, self.name)
        return np.frombuffer(payload, dtype="<i2").astype(np.int16)

    def max_bytes(self, n: int) -> int:
        """See ScoreCodec."""
        return 2 * n


class Bfloat16Codec:
    """Logits rounded to bfloat16, half to even: what a half-precision trainer would send.

    Every step is exact in float32 but the rounding, which is done on the bits.
    """

    name = "bfloat16"
    wire: int = pb.CODEC_BFLOAT16

    def encode(self, scores: Scores) -> bytes:
        """See ScoreCodec."""
        bits = (scores.astype(np.float32) / np.float32(SCORE_UNIT)).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
        return rounded.astype("<u2").tobytes()

    def decode(self, payload: bytes, n: int) -> Scores:
        """See ScoreCodec."""
        check_length(payload, n, 2, self.name)
        bits = np.frombuffer(payload, dtype="<u2").astype(np.uint32) << 16
        logits = bits.view(np.float32)
        # Scores reach no further than 16 logits; NaN fails the comparison too.
        if not (np.abs(logits) <= 16).all():
            raise PayloadError("bfloat16 payload has logits outside [-16, 16]")
        units = np.rint(logits * np.float32(SCORE_UNIT))
        scores: Scores = np.clip(units, -32768, 32767).astype(np.int16)
        if self.encode(scores) != payload:
            raise PayloadError("bfloat16 payload has logits that no score rounds to")
        return scores

    def max_bytes(self, n: int) -> int:
        """See ScoreCodec."""
        return 2 * n


class Float32Codec:
    """Weights as they are, little-endian."""

    name = "float32"
    wire: int = pb.CODEC_FLOAT32

    def encode(self, weights: Weights) -> bytes:
        """See WeightCodec."""
        return weights.astype("<f4", copy=False).tobytes()

    def decode(self, payload: bytes, n: int) -> Weights:
        """See WeightCodec."""
        check_length(payload, n, 4, self.name)
        weights = np.frombuffer(payload, dtype="<f4").astype(np.float32)
        if not np.isfinite(weights).all():
            raise PayloadError("float32 payload has values that are not finite")
        return weights

    def max_bytes(self, n: int) -> int:
        """See WeightCodec."""
        return 4 * n
