"""How a run goes, as its server says it to whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from client.channel import Channel
from client.messages import Security
from common.address import Address
from common.rpc.prism.v1 import federation_pb2 as pb
from common.tokens import Token
from common.wire import TOKEN_KEY


@dataclass(frozen=True)
class ClientStatus:
    """One client.

    Attributes:
        name: empty where the server does not tell it.
        state: what it does; see `ClientStatus.standing` in the contract.
        seconds: from the opening of the last closed round until its update was in; None without.
        payload_bytes: of that update, likewise.
        far_off: whether that update lay far from the others and did not count.
        missed: deadlines in a row.
        left_out_until: the first round that it is asked in again; None if it has missed none.
    """

    name: str
    state: str
    seconds: float | None
    payload_bytes: int | None
    far_off: bool
    missed: int
    left_out_until: int | None


@dataclass(frozen=True)
class Problem:
    """Calls of one caller that ended in the same error; see the contract."""

    unix_seconds: float
    rpc: str
    caller: str
    code: str
    error: str
    message: str
    times: int


@dataclass(frozen=True)
class Status:
    """A run.

    Attributes:
        run: its name.
        phase: waiting, open, closing or finished.
        round: that is open or next; rounds that were closed.
        rounds: of the whole run.
        state_digest: of the current state, in hex.
        phase_seconds: how long the phase has lasted.
        waits_for: what for, in one line; empty where the server does not tell names.
        seconds_left: of the run, about; None before a round was closed.
        quality_round: rounds that the model had that was evaluated last; None without.
        quality: figures of that evaluation.
        clients: by name.
        problems: the newest first.
    """

    run: str
    phase: str
    round: int
    rounds: int
    state_digest: str
    phase_seconds: float
    waits_for: str
    seconds_left: float | None
    quality_round: int | None
    quality: dict[str, float]
    clients: tuple[ClientStatus, ...]
    problems: tuple[Problem, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


class Asker:
    """A connection that status is asked by.

    Args:
        address: of the server.
        security: how the channel is secured; a token, too, lets names be told.

    Raises:
        ConfigError: the certificates cannot be used.
    """

    def __init__(self, address: Address, security: Security) -> None:
        self._channel = Channel(address, security)
        self._token_file = security.token_file

    def ask(self, seconds: float) -> Status:
        """Ask once, for so many seconds at most.

        Raises:
            ConfigError: the token cannot be read, or something else is at the address.
            TransportError: there was no answer.
        """
        file = self._token_file
        proof = () if file is None else ((TOKEN_KEY, Token.read(file).secret),)
        with self._channel.errors():
            reply = self._channel.stub.GetStatus(
                pb.GetStatusRequest(), timeout=seconds, metadata=proof
            )
        return _status(reply)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


@contextmanager
def asking(address: Address, security: Security) -> Iterator[Asker]:
    """An `Asker` for a block."""
    asker = Asker(address, security)
    try:
        yield asker
    finally:
        asker.close()


def _status(reply: pb.GetStatusResponse) -> Status:
    evaluated = reply.HasField("quality")
    return Status(
        run=reply.run_name,
        phase=reply.phase,
        round=reply.round,
        rounds=reply.rounds,
        state_digest=reply.state_digest.hex(),
        phase_seconds=reply.phase_seconds,
        waits_for=reply.waits_for,
        seconds_left=reply.seconds_left if reply.HasField("seconds_left") else None,
        quality_round=reply.quality.round if evaluated else None,
        quality=dict(sorted(reply.quality.figures.items())),
        clients=tuple(_client(client) for client in reply.clients),
        problems=tuple(
            Problem(p.unix_seconds, p.rpc, p.caller, p.code, p.error, p.message, p.times)
            for p in reply.problems
        ),
    )


def _client(client: pb.ClientStatus) -> ClientStatus:
    measured = client.HasField("measured")
    return ClientStatus(
        name=client.name,
        state=client.standing,
        seconds=client.measured.seconds if measured else None,
        payload_bytes=client.measured.payload_bytes if measured else None,
        far_off=client.measured.left_out,
        missed=client.missed,
        left_out_until=client.left_out_until if client.missed else None,
    )
