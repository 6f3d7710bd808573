"""The codec registry: one entry per value of the wire enums Codec and StateCodec.

Look-ups by name are for a validated config, look-ups by wire value for what a peer sent. The
state codecs stand alone, because a keyframe, counts and a quantised difference need different
things to be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from common.codecs.base import CodecContext, MaskCodec, ScoreCodec, WeightCodec, Weights
from common.codecs.difference import ErrorFeedbackCodec, ExactCodec, step_units
from common.codecs.entropy import EntropyCodec
from common.codecs.flips import FlipsCodec, selection_threshold
from common.codecs.keyframe import KeyframeCodec, KeyframeEntropyCodec
from common.codecs.plain import Bfloat16Codec, Float32Codec, Int16Codec, RawCodec
from common.errors import PayloadError

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

_MASKS: Final[Mapping[str | int, MaskCodec]] = {k: c for c in MASK_CODECS for k in (c.name, c.wire)}
_SCORES: Final[Mapping[str | int, ScoreCodec]] = {
    k: c for c in SCORE_CODECS for k in (c.name, c.wire)
}
_WEIGHTS: Final[Mapping[str | int, WeightCodec]] = {
    k: c for c in WEIGHT_CODECS for k in (c.name, c.wire)
}


def mask_codec(key: str | int) -> MaskCodec:
    """The mask codec of a name or of a value of the wire enum Codec.

    Raises:
        PayloadError: there is none.
    """
    if key not in _MASKS:
        raise PayloadError(f"no mask codec {key!r}; there are {_names(MASK_CODECS)}")
    return _MASKS[key]


def score_codec(key: str | int) -> ScoreCodec:
    """The score codec of a name or of a value of the wire enum Codec.

    Raises:
        PayloadError: there is none.
    """
    if key not in _SCORES:
        raise PayloadError(f"no score codec {key!r}; there are {_names(SCORE_CODECS)}")
    return _SCORES[key]


def weight_codec(key: str | int) -> WeightCodec:
    """The weight codec of a name or of a value of the wire enum Codec.

    Raises:
        PayloadError: there is none.
    """
    if key not in _WEIGHTS:
        raise PayloadError(f"no weight codec {key!r}; there are {_names(WEIGHT_CODECS)}")
    return _WEIGHTS[key]


def _names(
    codecs: tuple[MaskCodec, ...] | tuple[ScoreCodec, ...] | tuple[WeightCodec, ...],
) -> str:
    return ", ".join(f"{codec.name} ({codec.wire})" for codec in codecs)
