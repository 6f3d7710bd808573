"""The codec registry: one entry per value of the wire enums Codec and StateCodec.

Codecs are looked up by the names of a validated config; what a peer sends is compared with what
the config says, and never looked up. `common.layout.codec_of` gives the codec of a segment. The
state codecs stand alone, because a keyframe, counts and a quantised difference need different
things to be read.
"""

from __future__ import annotations

from typing import Final

from common.codecs.base import CodecContext, MaskCodec, ScoreCodec, WeightCodec, Weights
from common.codecs.difference import ErrorFeedbackCodec, ExactCodec, step_units
from common.codecs.entropy import EntropyCodec
from common.codecs.flips import FlipsCodec, selection_threshold
from common.codecs.keyframe import KeyframeCodec, KeyframeEntropyCodec
from common.codecs.plain import Bfloat16Codec, Float32Codec, Int16Codec, RawCodec

__all__ = [
    "ERROR_FEEDBACK",
    "EXACT",
    "KEYFRAME",
    "KEYFRAME_ENTROPY",
    "MASK_CODECS",
    "SCORE_CODECS",
    "WEIGHT_CODECS",
    "CodecContext",
    "MaskCodec",
    "ScoreCodec",
    "WeightCodec",
    "Weights",
    "mask_codec",
    "score_codec",
    "selection_threshold",
    "step_units",
    "weight_codec",
]

MASK_CODECS: Final[tuple[MaskCodec, ...]] = (RawCodec(), EntropyCodec(), FlipsCodec())
SCORE_CODECS: Final[tuple[ScoreCodec, ...]] = (Int16Codec(), Bfloat16Codec())
WEIGHT_CODECS: Final[tuple[WeightCodec, ...]] = (Float32Codec(),)

KEYFRAME: Final = KeyframeCodec()
KEYFRAME_ENTROPY: Final = KeyframeEntropyCodec()
EXACT: Final = ExactCodec()
ERROR_FEEDBACK: Final = ErrorFeedbackCodec()

_MASKS: Final = {codec.name: codec for codec in MASK_CODECS}
_SCORES: Final = {codec.name: codec for codec in SCORE_CODECS}
_WEIGHTS: Final = {codec.name: codec for codec in WEIGHT_CODECS}


def mask_codec(name: str) -> MaskCodec:
    """The mask codec that `codec.up` names; KeyError if there is none."""
    return _MASKS[name]


def score_codec(name: str) -> ScoreCodec:
    """The score codec that `codec.scores` names; KeyError if there is none."""
    return _SCORES[name]


def weight_codec(name: str) -> WeightCodec:
    """The weight codec that `codec.up` names; KeyError if there is none."""
    return _WEIGHTS[name]
