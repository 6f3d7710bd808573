"""What calls move, counted."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

Direction: TypeAlias = Literal["up", "down"]


@dataclass(frozen=True)
class Traffic:
    """What one call, or several of one kind, moved in one direction.

    Attributes:
        round: that the call belonged to.
        client: name; empty where the caller has none.
        direction: "up" is from the client to the server.
        rpc: name of the method.
        payload_bytes: of updates and states, as their codecs made them.
        message_bytes: of the protobuf messages.
        calls: that these are.
        summed: whether to add the round's calls up and write them as one line.
    """

    round: int
    client: str
    direction: Direction
    rpc: str
    payload_bytes: int
    message_bytes: int
    calls: int = 1
    summed: bool = False

    @property
    def kind(self) -> tuple[int, str, str, str]:
        """What calls have in common that may be added up."""
        return (self.round, self.client, self.direction, self.rpc)

    def __add__(self, other: Traffic) -> Traffic:
        """Both together, of one kind."""
        return replace(
            self,
            payload_bytes=self.payload_bytes + other.payload_bytes,
            message_bytes=self.message_bytes + other.message_bytes,
            calls=self.calls + other.calls,
        )

    def line(self) -> dict[str, Any]:
        """The line of comm.jsonl, without its time."""
        return {
            "round": self.round,
            "client": self.client,
            "direction": self.direction,
            "rpc": self.rpc,
            "payload_bytes": self.payload_bytes,
            "message_bytes": self.message_bytes,
            "calls": self.calls,
        }


@dataclass
class Meter:
    """What one call moves while it is going on.

    Attributes:
        payload: bytes so far, by direction.
        message: likewise.
        journalled: whether the journal has what came up, and the books write of it from there.
    """

    payload: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    message: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    journalled: bool = False

    def count(self, direction: Direction, payload: int, message: int) -> None:
        """Add a message."""
        self.payload[direction] += payload
        self.message[direction] += message


METER: ContextVar[Meter] = ContextVar("METER")
"""Of the call that is being answered; the interceptor sets it."""
