"""How a client gets from the state it holds to the state of a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.config import RunConfig
from common.errors import PayloadError
from common.model.architecture import Architecture
from common.state import GlobalState, initial_scores

KEYFRAME = 1
"""The wire value of STATE_CODEC_KEYFRAME."""
STATE_CODECS = (KEYFRAME,)
"""What this software can apply, as wire values."""


@dataclass(frozen=True)
class StateStep:
    """One step of a chain that ends at the wanted state.

    Attributes:
        codec: the wire value of the proto enum StateCodec.
        round: the round whose state this step makes.
        payload: bytes of the codec.
    """

    codec: int
    round: int
    payload: bytes


def initial_state(config: RunConfig) -> GlobalState:
    """State 0, which both sides build from the seed and nobody sends."""
    dimension = Architecture.of(config.model).dimension
    return GlobalState(0, initial_scores(dimension, config.seed))


def apply_steps(held: GlobalState, steps: Sequence[StateStep]) -> GlobalState:
    """Apply a chain of steps to the state that this side holds.

    Raises:
        PayloadError: a step does not decode, or a difference does not start where it must.
    """
    state = held
    for step in steps:
        if step.codec != KEYFRAME:
            raise PayloadError(f"no state codec {step.codec} for this run")
        dtype = str(state.values.dtype)
        state = GlobalState.from_bytes(step.round, step.payload, state.dimension, dtype)
    return state
