"""What a codec may lean on, and what every codec offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.masks import Mask
from common.state import Probs, Scores

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class CodecContext:
    """What both sides know about one mask segment of one client in one round.

    Attributes:
        seed: the run's seed.
        round: the open round.
        rank: the client's place in the cohort, 0 <= rank < cohort_size.
        cohort_size: clients in the cohort.
        offset: the segment's first parameter.
        scores: (n,) int16, the segment of the shared global state.
        share: share of the coordinates that each client sends (flips only).
    """

    seed: int
    round: int
    rank: int
    cohort_size: int
    offset: int
    scores: Scores
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.cohort_size:
            raise ValueError(f"rank {self.rank} is not in a cohort of {self.cohort_size}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} is outside (0, 1]")

    @property
    def size(self) -> int:
        """n, the parameters of the segment."""
        return int(self.scores.size)


class MaskCodec(Protocol):
    """Bytes for a sampled mask.

    Attributes:
        name: as the config's `codec.up` spells it.
        wire: the value of the proto enum Codec.
    """

    name: str
    wire: int

    def sample(self, probs: Probs, context: CodecContext, private: np.random.Generator) -> Mask:
        """Draw M ~ Bernoulli(probs / 65536); (n,) uint16 -> n bits."""

    def reference(self, context: CodecContext) -> Mask | None:
        """R, the mask that both sides know, E[R] = theta; None without a control variate."""

    def encode(self, mask: Mask, context: CodecContext) -> bytes:
        """The payload of a mask that `sample` drew in this context."""

    def decode(self, payload: bytes, context: CodecContext) -> Mask:
        """The mask of a payload.

        Raises:
            PayloadError: the payload is not one that `encode` made in this context.
        """

    def max_bytes(self, n: int) -> int:
        """Longest payload of n parameters; longer ones need not be buffered."""


class ScoreCodec(Protocol):
    """Bytes for scores (PRISM-alpha).

    Attributes:
        name: as the config's `codec.scores` spells it.
        wire: the value of the proto enum Codec.
    """

    name: str
    wire: int

    def encode(self, scores: Scores) -> bytes:
        """The payload of (n,) int16 scores."""

    def decode(self, payload: bytes, n: int) -> Scores:
        """(n,) int16 scores.

        Raises:
            PayloadError: the payload is not one that `encode` made of n scores.
        """

    def max_bytes(self, n: int) -> int:
        """Length of every payload of n scores."""


class WeightCodec(Protocol):
    """Bytes for weights or their differences (FedAvg).

    Attributes:
        name: how a person calls it.
        wire: the value of the proto enum Codec.
    """

    name: str
    wire: int

    def encode(self, weights: Weights) -> bytes:
        """The payload of (n,) finite float32 weights."""

    def decode(self, payload: bytes, n: int) -> Weights:
        """(n,) float32 weights.

        Raises:
            PayloadError: wrong length, or a weight that is not finite.
        """

    def max_bytes(self, n: int) -> int:
        """Length of every payload of n weights."""
