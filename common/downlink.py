"""How a client gets from the state it holds to the state of a round.

Three kinds of step: a keyframe (the whole state), the integers of a round to replay (exact),
or a quantised move (error feedback). All end in the server's state bit for bit.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from common.codecs import (
    ERROR_FEEDBACK,
    EXACT,
    KEYFRAME,
    KEYFRAME_ENTROPY,
    step_units,
)
from common.config import RunConfig
from common.errors import PayloadError
from common.model.architecture import Architecture
from common.model.frozen import frozen_weights
from common.server_update import RoundCounts, advance, estimate, masked_count, sharpened
from common.state import LAMBDA_ONE, GlobalState, initial_scores

STATE_CODECS = (KEYFRAME.wire, KEYFRAME_ENTROPY.wire, EXACT.wire, ERROR_FEEDBACK.wire)
"""What this software can apply, as values of the wire enum StateCodec."""
_EXACT_HEADER = struct.Struct("<III?")
"""Clients, lambda in 1/65536, scored parameters, whether counts are of M - R."""


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
    architecture = Architecture.of(config)
    if config.method == "fedavg":
        return GlobalState(0, frozen_weights(architecture, config.seed))
    return GlobalState(0, initial_scores(architecture.dimension, config.seed))


def apply_steps(config: RunConfig, held: GlobalState, steps: Sequence[StateStep]) -> GlobalState:
    """Apply a chain of steps to the state that this side holds.

    Raises:
        PayloadError: a step does not decode, or a difference does not start where it must.
    """
    state = held
    for step in steps:
        state = _apply(config, state, step)
    return state


def _apply(config: RunConfig, state: GlobalState, step: StateStep) -> GlobalState:
    if step.codec == KEYFRAME.wire:
        dtype = str(state.values.dtype)
        return GlobalState.from_bytes(step.round, step.payload, state.dimension, dtype)
    if state.values.dtype != np.int16:
        raise PayloadError(f"state codec {step.codec} is not for a method that trains weights")
    if step.codec == KEYFRAME_ENTROPY.wire:
        scores = KEYFRAME_ENTROPY.decode(step.payload, state.dimension)
        return GlobalState(step.round, scores)
    if step.round != state.round + 1:
        raise PayloadError(f"a difference to state {step.round} does not start at {state.round}")
    if step.codec == EXACT.wire:
        return replay_step(config, state, step.payload)
    if step.codec == ERROR_FEEDBACK.wire:
        levels = ERROR_FEEDBACK.decode(step.payload, state.scores)
        return move_by_levels(config, state, levels)
    raise PayloadError(f"no state codec has the number {step.codec}")


def exact_step(state: GlobalState, counts: RoundCounts, lam: int) -> StateStep:
    """The step from `state` that replays a round's integers."""
    header = _EXACT_HEADER.pack(counts.clients, lam, counts.mean_scores.size, counts.referenced)
    masked = state.scores[: counts.ones.size]
    payload = header + counts.mean_scores.astype("<i2").tobytes()
    payload += EXACT.encode(counts.ones, counts.clients, masked)
    return StateStep(EXACT.wire, state.round + 1, payload)


def replay_step(config: RunConfig, state: GlobalState, payload: bytes) -> GlobalState:
    """Replay a round as the server ran it; the inverse of `exact_step`.

    Raises:
        PayloadError: the payload is not one that `exact_step` made for this state.
    """
    if len(payload) < _EXACT_HEADER.size:
        raise PayloadError(f"exact step of {len(payload)} bytes has no header")
    clients, lam, scored, referenced = _EXACT_HEADER.unpack_from(payload)
    masked = masked_count(config)
    start = _EXACT_HEADER.size + 2 * scored
    if scored != state.dimension - masked or lam > LAMBDA_ONE or len(payload) < start:
        raise PayloadError("exact step does not fit this run's layout")
    mean_scores = np.frombuffer(payload[_EXACT_HEADER.size : start], dtype="<i2").astype(np.int16)
    ones = EXACT.decode(payload[start:], clients, state.scores[:masked])
    counts = RoundCounts(clients, referenced, ones, mean_scores)
    target = estimate(config, state, counts)
    return advance(config, state, counts, target, lam)


def feedback_units(config: RunConfig, round_: int) -> int:
    """The error-feedback quantiser's step in a round, where theta (1 - theta) = 1, in score units.

    It falls with what a round moves: a coarse step where all is still to be found costs few bits,
    and a fine one lets late rounds settle. 1 - p^2 (3 - 2 p) is a half cosine to a hundredth, and
    in fractions it is the same on every machine.
    """
    codec, length = config.codec, config.schedule_length
    first, last = Fraction(codec.error_feedback_step), Fraction(codec.error_feedback_step_final)
    done = min(Fraction(1), Fraction(round_, max(length - 1, 1)))
    return step_units(last + (first - last) * (1 - done**2 * (3 - 2 * done)))


def move_by_levels(
    config: RunConfig, state: GlobalState, levels: np.ndarray[tuple[int], np.dtype[np.int8]]
) -> GlobalState:
    """Add a quantised move to a state, and sharpen it; server and client do this alike."""
    moved = ERROR_FEEDBACK.dequantise(levels, state.scores, feedback_units(config, state.round))
    return sharpened(config, GlobalState(state.round + 1, (state.scores + moved).astype(np.int16)))
