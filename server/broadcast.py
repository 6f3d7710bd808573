"""The downlink: which state everyone goes on from, and what brings a client there.

A lossy downlink makes the state that was broadcast the truth, for the server too; so what
`publish` returns, and not what the aggregation wanted, is what the next round starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from common.config import RunConfig
from common.errors import ConfigError
from common.state import GlobalState
from common.steps import KEYFRAME, StateStep
from server.aggregate import Closed


class Broadcast(Protocol):
    """The downlink of one run.

    Attributes:
        state: what the open round starts from.
        digest: of that state.
    """

    state: GlobalState
    digest: bytes

    def publish(self, closed: Closed) -> GlobalState:
        """Make a closed round's result the current state, as it can be sent."""

    def steps(self, held: tuple[int, bytes] | None) -> tuple[StateStep, ...]:
        """What a client lacks; the shortest way there.

        Args:
            held: round and digest of the state that the client holds, if any.
        """

    def snapshot(self) -> Mapping[str, NDArray[Any]]:
        """What `restore` needs besides the state, for the checkpoint."""

    def restore(self, state: GlobalState, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a checkpoint."""


class KeyframeBroadcast:
    """The whole state each round, unless the client holds it; see `Broadcast`.

    Clients build state 0 from the seed, so the first round sends nothing.
    """

    def __init__(self, state: GlobalState) -> None:
        self.restore(state, {})

    def publish(self, closed: Closed) -> GlobalState:
        """See `Broadcast`."""
        self.restore(closed.state, {})
        return self.state

    def steps(self, held: tuple[int, bytes] | None) -> tuple[StateStep, ...]:
        """See `Broadcast`."""
        if held == (self.state.round, self.digest):
            return ()
        return (StateStep(KEYFRAME, self.state.round, self._payload),)

    def snapshot(self) -> Mapping[str, NDArray[Any]]:
        """See `Broadcast`."""
        return {}

    def restore(self, state: GlobalState, arrays: Mapping[str, NDArray[Any]]) -> None:  # noqa: ARG002
        """See `Broadcast`."""
        self.state = state
        self.digest = state.digest()
        self._payload = state.to_bytes()


def make_broadcast(config: RunConfig, state: GlobalState) -> Broadcast:
    """The downlink that the config names, at a state.

    Raises:
        ConfigError: this version has no such downlink.
    """
    if config.codec.down != "keyframe":
        raise ConfigError(f'codec.down: "{config.codec.down}" is not available; choose "keyframe"')
    return KeyframeBroadcast(state)
