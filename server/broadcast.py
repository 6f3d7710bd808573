"""The downlink: which state everyone goes on from, and what brings a client there.

A lossy downlink makes the state that was broadcast the truth, for the server too; so what
`publish` returns, and not what the aggregation wanted, is what the next round starts from.
What was held back is carried over and sent when it has grown (error feedback).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.codecs import ERROR_FEEDBACK, KEYFRAME, KEYFRAME_ENTROPY
from common.config import RunConfig
from common.downlink import StateStep, exact_step, feedback_units, move_by_levels
from common.state import GlobalState
from server.aggregate import Closed
from server.recovered import like

HISTORY: Final = 16
"""Differences kept for clients that are behind."""


@dataclass(frozen=True)
class _Link:
    """One difference, and the digest of the state that it starts from."""

    base: bytes
    step: StateStep


class Broadcast:
    """The downlink of one run.

    Attributes:
        state: what the open round starts from.
        digest: of that state.
    """

    def __init__(self, config: RunConfig, state: GlobalState) -> None:
        self._config = config
        self._down = config.codec.down
        self._kind = (state.values.shape, state.values.dtype)
        self.restore(state, {})

    def publish(self, closed: Closed) -> GlobalState:
        """Make a closed round's result the current state, as it can be sent."""
        base = self.digest
        if self._down == "error-feedback":
            state, step = self._quantised(closed.state)
            self._links.append(_Link(base, step))
        else:
            state = closed.state
            if self._down == "exact" and closed.replay is not None:
                step = exact_step(self.state, closed.replay.counts, closed.replay.lam)
                self._links.append(_Link(base, step))
        self._adopt(state)
        return state

    def steps(self, held: tuple[int, bytes] | None) -> tuple[StateStep, ...]:
        """What a client lacks; the shorter of a chain of differences and a keyframe.

        Args:
            held: round and digest of the state that the client holds, if any.
        """
        if held == (self.state.round, self.digest):
            return ()
        keyframe = (self._keyframe,)
        for start, link in enumerate(self._links):
            if held == (link.step.round - 1, link.base):
                chain = tuple(link.step for link in list(self._links)[start:])
                return min(chain, keyframe, key=_payload_bytes)
        return keyframe

    def snapshot(self) -> Mapping[str, NDArray[Any]]:
        """What `restore` needs besides the state, for the checkpoint."""
        arrays: dict[str, NDArray[Any]] = {"residual": self._residual}
        for link in self._links:
            content = link.base + bytes([link.step.codec]) + link.step.payload
            arrays[f"step.{link.step.round}"] = np.frombuffer(content, dtype=np.uint8)
        return arrays if self._down != "keyframe" else {}

    def restore(self, state: GlobalState, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a checkpoint; raises ValueError where it is of another run."""
        if (state.values.shape, state.values.dtype) != self._kind:
            raise ValueError(f"a state of {state.values.shape} {state.values.dtype}")
        self._links: deque[_Link] = deque(maxlen=HISTORY)
        nothing = np.zeros(state.dimension, dtype=np.int32)
        self._residual = like(nothing, arrays.get("residual", nothing))
        names = [name for name in arrays if name.startswith("step.")]
        for name in sorted(names, key=lambda name: int(name[5:])):
            content = arrays[name].tobytes()
            step = StateStep(content[32], int(name[5:]), content[33:])
            self._links.append(_Link(content[:32], step))
        self._adopt(state)

    def _adopt(self, state: GlobalState) -> None:
        self.state = state
        self.digest = state.digest()
        if self._down == "keyframe":
            self._keyframe = StateStep(KEYFRAME.wire, state.round, state.to_bytes())
        else:
            payload = KEYFRAME_ENTROPY.encode(state.scores)
            self._keyframe = StateStep(KEYFRAME_ENTROPY.wire, state.round, payload)

    def _quantised(self, target: GlobalState) -> tuple[GlobalState, StateStep]:
        """Send what of the pending difference is worth it, and carry the rest over."""
        base, units = self.state, feedback_units(self._config, self.state.round)
        pending = self._residual + (target.scores.astype(np.int32) - base.scores)
        levels = ERROR_FEEDBACK.quantise(pending, base.scores, units)
        self._residual = pending - ERROR_FEEDBACK.dequantise(levels, base.scores, units)
        state = move_by_levels(self._config, base, levels)
        payload = ERROR_FEEDBACK.encode(levels, base.scores)
        return state, StateStep(ERROR_FEEDBACK.wire, state.round, payload)


def _payload_bytes(steps: tuple[StateStep, ...]) -> int:
    return sum(len(step.payload) for step in steps)
