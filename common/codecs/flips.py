"""Where a mask differs from a reference that both sides know.

A dither u, shared by both sides and uniform on 16 bits, draws two masks: the reference
R = [u < P] under the state's probability P, and the client's M = [u < Q]. Each is exactly
Bernoulli, and they differ only where u fell between P and Q; so F = M xor R is rare, and rarer
the further u lies from P, which is what the contexts tell.

Because E[R] = P is known, P + mean(M - R) estimates the mean of the Q without bias and with
less variance than mean(M). Two further rotations lower it: the clients of one cohort read one
dither rotated by rank / cohort_size (systematic sampling), and so do their subsets where each
sends only a share of the coordinates; elsewhere M := R, and M - R is divided by the share.

Whoever knows u learns [u < Q] exactly: no privacy may be claimed for the sampling itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.codecs import coder
from common.codecs.base import CodecContext
from common.codecs.entropy import score_bins
from common.errors import PayloadError
from common.masks import Mask, check_size, pack, unpack
from common.rpc.prism.v1 import federation_pb2 as pb
from common.seeding import uniform16
from common.state import PROB_ONE, Probs, Scores, logit_table, sigma

_REACH_BYTES: Final = 2
_HEADER_BYTES: Final = _REACH_BYTES + 1
_STATE_SHIFT: Final = 12
"""log2 of the finest bin of the state in score units: two logits."""
_STATES: Final = 1 << (16 - _STATE_SHIFT)
_DISTANCES: Final = 24
"""Finest bins of the distance: even in its square root, as flips crowd near zero."""


@lru_cache(maxsize=4)
def _shared(purpose: str, n: int, seed: int, round_: int, offset: int) -> NDArray[np.uint16]:
    """(n,) uint16 before rotation; kept because every client of the cohort reads the same."""
    values = uniform16(n, seed, purpose, round_, offset)
    values.flags.writeable = False
    return values


def _rotated(purpose: str, context: CodecContext, place: int) -> NDArray[np.uint16]:
    values = _shared(purpose, context.size, context.seed, context.round, context.offset)
    # Unsigned addition wraps at 65536, as the rotation should.
    return values + np.uint16(place * PROB_ONE // context.cohort_size)


def dither(context: CodecContext) -> NDArray[np.uint16]:
    """u, (n,) uint16, uniform: this client's rotation of the cohort's."""
    return _rotated("dither", context, context.rank)


def selection(context: CodecContext) -> NDArray[np.intp] | None:
    """Positions that this client sends; None for all of them.

    Those who send one position are neighbours in this rotation. Ranks enter it in golden-ratio
    steps, so that the dithers of neighbours lie far apart: up to half the variance.
    """
    threshold = selection_threshold(context.share)
    if threshold == PROB_ONE:
        return None
    place = context.rank * _stride(context.cohort_size) % context.cohort_size
    return np.flatnonzero(_rotated("selection", context, place) < threshold)


def _stride(cohort_size: int) -> int:
    """The number nearest to the golden section of the cohort size that is coprime to it."""
    coprime = (x for x in range(1, cohort_size + 1) if math.gcd(x, cohort_size) == 1)
    return min(coprime, key=lambda x: abs(1000 * x - 618 * cohort_size))


def selection_threshold(share: float) -> int:
    """The exact share of the coordinates sent, in units of 1/65536; estimators divide by it."""
    return max(1, round(share * PROB_ONE))


@dataclass(frozen=True)
class _Grid:
    """How finely contexts tell states and distances apart.

    Attributes:
        state_merge: log2 of how many of the _STATES finest bins of the state make one.
        distance_merge: likewise of the _DISTANCES finest bins of the distance.
    """

    state_merge: int
    distance_merge: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(state bins, references, distance bins); the last distance bin is out of reach."""
        return _STATES >> self.state_merge, 2, (_DISTANCES >> self.distance_merge) + 1

    @cached_property
    def coarsened(self) -> coder.Keys:
        """(_FINEST.contexts,) uint16: the context that each of the finest falls into."""
        state, drawn, distance = np.indices(_FINEST.shape)
        place = (state >> self.state_merge, drawn, distance >> self.distance_merge)
        merged: coder.Keys = np.ravel_multi_index(place, self.shape).astype(np.uint16).ravel()
        return merged

    @property
    def contexts(self) -> int:
        """Number of contexts."""
        return math.prod(self.shape)


_FINEST: Final = _Grid(0, 0)
_GRIDS: Final = tuple(_Grid(state, distance) for state in range(5) for distance in range(4))


def _choose(table: NDArray[np.intp]) -> int:
    """Index of the grid with the shortest stream.

    Args:
        table: (_FINEST.contexts, 2), how many symbols of each context are 0 and 1.
    """
    costs = []
    for grid in _GRIDS:
        merged = np.zeros((grid.contexts, 2), dtype=np.int64)
        np.add.at(merged, grid.coarsened, table)
        # A histogram of two symbols takes about eight bits.
        costs.append(coder.total_bits(merged) + 8 * int((merged > 0).all(axis=1).sum()))
    return costs.index(min(costs))


@dataclass(frozen=True)
class _Sent:
    """The coordinates that a client sends.

    Attributes:
        positions: (m,) their positions, or None for all.
        drawn: (m,) bool, the reference there.
        distance: (m,) uint16, |logit u - score| in score units.
        scores: (m,) int16.
    """

    positions: NDArray[np.intp] | None
    drawn: NDArray[np.bool_]
    distance: NDArray[np.uint16]
    scores: Scores

    @property
    def size(self) -> int:
        return int(self.drawn.size)

    @classmethod
    def of(cls, context: CodecContext) -> _Sent:
        u, scores, positions = dither(context), context.scores, selection(context)
        if positions is not None:
            u, scores = u[positions], scores[positions]
        logit_u = logit_table()[u]
        # Differences of two int16 need 17 bits signed but only 16 where the order is known.
        above = np.maximum(logit_u, scores).view(np.uint16)
        distance = above - np.minimum(logit_u, scores).view(np.uint16)
        return cls(positions, u < sigma(scores), distance, scores)

    def keys(self, reach: int) -> coder.Keys:
        """(m,) contexts on the finest grid: state, reference, distance relative to the reach."""
        edges = -(-(np.arange(_DISTANCES + 1, dtype=np.int64) ** 2) * (reach + 1) // _DISTANCES**2)
        widths = np.diff(edges, append=PROB_ONE)
        table = np.repeat(np.arange(_DISTANCES + 1, dtype=np.uint16), widths)
        keys: coder.Keys = score_bins(self.scores, _STATE_SHIFT) * np.uint16(2 * (_DISTANCES + 1))
        keys += self.drawn * np.uint16(_DISTANCES + 1)
        keys += table[self.distance]
        return keys


class FlipsCodec:
    """F = M xor R, coded by state, reference and distance of the dither from the state.

    The payload is the reach (the longest distance at which a mask differs, uint16), the index
    of the context grid (one byte; the encoder takes the cheapest), then the flips as `coder`
    makes them, then the checksum.
    """

    name = "flips"
    wire: int = pb.CODEC_FLIPS

    def sample(self, probs: Probs, context: CodecContext, private: np.random.Generator) -> Mask:  # noqa: ARG002
        """[u < Q] where this client sends, R elsewhere; no private randomness is needed."""
        u = dither(context)
        positions = selection(context)
        if positions is None:
            return pack(u < probs)
        bits = u < sigma(context.scores)
        bits[positions] = u[positions] < probs[positions]
        return pack(bits)

    def reference(self, context: CodecContext) -> Mask | None:
        """R = [u < P]."""
        return pack(dither(context) < sigma(context.scores))

    def encode(self, mask: Mask, context: CodecContext) -> bytes:
        """See MaskCodec.

        Raises:
            PayloadError: not a mask of n parameters, or one that differs from R where
                this client sends nothing.
        """
        check_size(mask, context.size)
        sent = _Sent.of(context)
        bits = unpack(mask)
        if sent.positions is not None:
            self._check_unsent(mask, sent, context)
            bits = bits[sent.positions]
        flips = bits ^ sent.drawn
        flipped = sent.distance[flips.view(np.bool_)]
        reach = int(flipped.max(initial=0))
        keys = sent.keys(reach)
        counts = np.bincount(2 * keys + flips, minlength=2 * _FINEST.contexts)
        choice = _choose(counts.reshape(-1, 2))
        grid = _GRIDS[choice]
        body = reach.to_bytes(_REACH_BYTES, "little") + bytes([choice])
        body += coder.encode(flips, grid.coarsened[keys], grid.contexts, 2)
        return coder.seal(body, mask.tobytes(), context.size)

    def decode(self, payload: bytes, context: CodecContext) -> Mask:
        """See MaskCodec."""
        body = coder.unseal(payload, self.max_bytes(context.size), self.name)
        if len(body) < _HEADER_BYTES:
            raise PayloadError(f"flips payload of {len(payload)} bytes is truncated")
        if body[_REACH_BYTES] >= len(_GRIDS):
            raise PayloadError(f"flips payload has no context grid {body[_REACH_BYTES]}")
        reach = int.from_bytes(body[:_REACH_BYTES], "little")
        grid = _GRIDS[body[_REACH_BYTES]]
        sent = _Sent.of(context)
        keys = grid.coarsened[sent.keys(reach)]
        flips = coder.decode(body[_HEADER_BYTES:], keys, grid.contexts, 2)
        bits = sent.drawn ^ flips.astype(np.bool_)
        if sent.positions is None:
            mask = pack(bits)
        else:
            whole = dither(context) < sigma(context.scores)
            whole[sent.positions] = bits
            mask = pack(whole)
        coder.verify(payload, mask.tobytes(), context.size, self.name)
        return mask

    def max_bytes(self, n: int) -> int:
        """See MaskCodec."""
        return coder.bound(n, _FINEST.contexts, 2) + _HEADER_BYTES

    def _check_unsent(self, mask: Mask, sent: _Sent, context: CodecContext) -> None:
        differs = mask ^ pack(dither(context) < sigma(context.scores))
        flips = unpack(differs)
        if sent.positions is not None:
            flips[sent.positions] = 0
        if flips.any():
            raise PayloadError("mask differs from the reference where this client sends nothing")
