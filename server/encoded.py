"""States as messages, made once for all clients that lack the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from common.downlink import StateStep
from common.rpc.prism.v1 import federation_pb2 as pb
from common.wire import chunks, step_to_pb

KEPT: Final = 4
"""Kinds of lack: nearly all clients hold the state of the round before, or none."""


class EncodedStates:
    """The messages of `FetchState` of the current state; callers must not change them."""

    def __init__(self) -> None:
        self._digest = b""
        self._kept: dict[tuple[tuple[int, int], ...], list[pb.StateChunk]] = {}

    def messages(
        self, round_: int, digest: bytes, steps: Sequence[StateStep]
    ) -> Sequence[pb.StateChunk]:
        """Header and payloads of the steps that lead to a state.

        Args:
            round_: of the state.
            digest: of the state; another one than before ends what is kept.
            steps: as `Broadcast.steps` gives them for this state.
        """
        if digest != self._digest:
            self._digest, self._kept = digest, {}
        kind = tuple((step.codec, step.round) for step in steps)
        if kind not in self._kept:
            if len(self._kept) == KEPT:
                del self._kept[next(iter(self._kept))]
            header = pb.StateHeader(round=round_, state_digest=digest)
            header.steps.extend(step_to_pb(step) for step in steps)
            data = (data for step in steps for data in chunks(step.payload))
            self._kept[kind] = [
                pb.StateChunk(header=header),
                *(pb.StateChunk(data=piece) for piece in data),
            ]
        return self._kept[kind]
