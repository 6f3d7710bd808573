"""Which segments an update of this run consists of: the one answer both sides use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.codecs import (
    CodecContext,
    MaskCodec,
    ScoreCodec,
    WeightCodec,
    mask_codec,
    score_codec,
    weight_codec,
)
from common.config import RunConfig
from common.model.architecture import Architecture
from common.state import GlobalState


@dataclass(frozen=True)
class SegmentSpec:
    """A range of parameters that travels in one way.

    Attributes:
        kind: what the values are.
        codec: name in the codec registry.
        offset: first parameter.
        count: parameters.
    """

    kind: Literal["mask", "score", "weight"]
    codec: str
    offset: int
    count: int

    @property
    def slice(self) -> slice:
        """The range in the flat vector."""
        return slice(self.offset, self.offset + self.count)


def update_layout(config: RunConfig) -> tuple[SegmentSpec, ...]:
    """Segments that tile [0, d) in order.

    PRISM-alpha (section 4.3 of the paper): the last alpha share of the masked layers, rounded
    to whole layers, uploads scores; the layers before them a mask.
    """
    architecture = Architecture.of(config)
    d = architecture.dimension
    if config.method == "fedavg":
        return (SegmentSpec("weight", config.codec.up, 0, d),)
    scored = int(config.alpha * len(architecture.layers) + 0.5)
    border = architecture.layers[-scored].offset if scored else d
    segments = (
        SegmentSpec("mask", config.codec.up, 0, border),
        SegmentSpec("score", config.codec.scores, border, d - border),
    )
    return tuple(segment for segment in segments if segment.count)


def codec_of(segment: SegmentSpec) -> MaskCodec | ScoreCodec | WeightCodec:
    """The codec that a segment of this run travels in."""
    if segment.kind == "mask":
        return mask_codec(segment.codec)
    return (score_codec if segment.kind == "score" else weight_codec)(segment.codec)


def mask_context(
    config: RunConfig, state: GlobalState, segment: SegmentSpec, rank: int, cohort_size: int
) -> CodecContext:
    """What the mask codec of this run knows about one client's segment."""
    return CodecContext(
        seed=config.seed,
        round=state.round,
        rank=rank,
        cohort_size=cohort_size,
        offset=segment.offset,
        scores=state.scores[segment.slice],
        share=config.codec.coordinates_per_round,
    )
