"""The sampled mask, range-coded under the shared state: about its cross-entropy, exact."""

from __future__ import annotations

from typing import Final

import numpy as np

from common.codecs import coder
from common.codecs.base import CodecContext
from common.codecs.plain import sample_private
from common.masks import Mask, check_size, pack, unpack
from common.rpc.prism.v1 import federation_pb2 as pb
from common.state import Probs, Scores

_FINE: Final = 8
"""log2 of the width of a score bin, in score units; an eighth of a logit."""


def score_bins(scores: Scores, shift: int) -> coder.Keys:
    """(n,) bins of 2 ** shift score units, numbered from the lowest score."""
    return ((scores.view(np.uint16) ^ np.uint16(0x8000)) >> np.uint16(shift)).astype(np.uint16)


def bin_shift(n: int, finest: int, symbols_per_bin: int) -> int:
    """Width of score bins, as a shift, so that few symbols do not pay for many histograms."""
    shift = finest
    # The states of a run lie within about five logits of zero, a third of all scores.
    while shift < 16 and n * 3 < symbols_per_bin << (16 - shift):
        shift += 1
    return shift


class EntropyCodec:
    """M under theta_t, one histogram per bin of theta_t."""

    name = "entropy"
    wire: int = pb.CODEC_ENTROPY

    def sample(self, probs: Probs, context: CodecContext, private: np.random.Generator) -> Mask:  # noqa: ARG002
        """See MaskCodec."""
        return sample_private(probs, private)

    def reference(self, context: CodecContext) -> Mask | None:  # noqa: ARG002
        """No control variate."""
        return None

    def encode(self, mask: Mask, context: CodecContext) -> bytes:
        """See MaskCodec."""
        check_size(mask, context.size)
        shift = bin_shift(context.size, _FINE, 512)
        body = coder.encode(unpack(mask), score_bins(context.scores, shift), 1 << (16 - shift), 2)
        return coder.seal(body, mask.tobytes(), context.size)

    def decode(self, payload: bytes, context: CodecContext) -> Mask:
        """See MaskCodec."""
        shift = bin_shift(context.size, _FINE, 512)
        body = coder.unseal(payload, self.max_bytes(context.size), self.name)
        bits = coder.decode(body, score_bins(context.scores, shift), 1 << (16 - shift), 2)
        mask = pack(bits.astype(np.uint8))
        coder.verify(payload, mask.tobytes(), context.size, self.name)
        return mask

    def max_bytes(self, n: int) -> int:
        """See MaskCodec."""
        return coder.bound(n, 1 << (16 - bin_shift(n, _FINE, 512)), 2)
