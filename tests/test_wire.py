"""Errors over real sockets: a client raises what the server raised, and nothing worse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CODE, NAMES, clients, refused, running, tiny_config
from support_tls import Authority

from client import transport
from client.messages import Assignment, Security, Wait
from client.transport import Transport
from common import errors, wire
from common.address import Address
from common.config import RunConfig
from common.errors import (
    AlreadyExists,
    Busy,
    IdentityMismatch,
    NotAdmitted,
    NotInCohort,
    PayloadError,
    PayloadTooLarge,
    PrismError,
    ProtocolError,
    RunMismatch,
    SessionUnknown,
    TransportError,
    WrongRound,
)
from common.fingerprint import Fingerprint
from common.layout import update_layout
from common.report import Report
from common.rpc.prism.v1 import federation_pb2 as pb
from common.rpc.prism.v1.federation_pb2_grpc import (
    FederationServicer,
    add_FederationServicer_to_server,
)
from server.engine import Engine
from server.interceptors import Gate
from server.service import FederationService

KINDS = {
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, (ProtocolError, TransportError))
}


class Peers:
    """Clients of one run over mutual TLS; each of its rounds asks one of three to train."""

    def __init__(self, config: RunConfig, address: str, authority: Authority) -> None:
        self.config = config
        self.fingerprint = Fingerprint.of(config)
        self.clients = {
            name: Transport(Address.parse(address), Security(authority.ca, *authority.issue(name)))
            for name in (*NAMES, "eve", "mallory")
        }
        self.asked, self.unasked = "", ""

    def prepare(self) -> None:
        """Have three join, which opens round 0, and see who is asked to train."""
        for name in NAMES:
            self.join(name)
        for name in NAMES:
            if isinstance(self.clients[name].await_round(), Wait):
                self.unasked = name
            else:
                self.asked = name

    def join(
        self,
        name: str,
        *,
        as_: str | None = None,
        instance: bytes = b"",
        wants_partition: bool = True,
        **of: Any,
    ) -> None:
        fingerprint = replace(self.fingerprint, **of)
        called = name if as_ is None else as_
        self.clients[name].join(called, instance.ljust(16), fingerprint, wants_partition)

    def submit(self, name: str, payload_bytes: int | None = None) -> None:
        (segment,) = update_layout(self.config)
        payload = bytes(-(-segment.count // 8) if payload_bytes is None else payload_bytes)
        self.clients[name].submit(
            self.fingerprint.run_id, Assignment(0, b"", 0, 1), [(segment, payload)], Report()
        )


PROVOKED: dict[type[PrismError], Callable[[Peers], object]] = {
    ProtocolError: lambda peers: peers.join("ann", as_="two\nlines"),
    PayloadError: lambda peers: peers.submit(peers.asked, 0),
    PayloadTooLarge: lambda peers: peers.submit(peers.asked, 10_000),
    SessionUnknown: lambda peers: peers.clients["eve"].await_round(),
    NotInCohort: lambda peers: peers.submit(peers.unasked),
    IdentityMismatch: lambda peers: peers.join("eve", as_="ann"),
    NotAdmitted: lambda peers: peers.join("mallory"),
    AlreadyExists: lambda peers: peers.join("ann", instance=b"another"),
    Busy: lambda peers: peers.join("eve"),
    RunMismatch: lambda peers: peers.join("eve", seed=7),
    WrongRound: lambda peers: peers.clients["ann"].fetch_state(5, None, 0),
}


def test_every_error_of_the_contract_is_provoked() -> None:
    assert {*PROVOKED, TransportError} == KINDS


@pytest.mark.parametrize("kind", PROVOKED, ids=lambda kind: kind.__name__)
def test_a_client_raises_what_the_server_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[PrismError]
) -> None:
    monkeypatch.setattr(transport, "POLL_SECONDS", 0.0)
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    allowed = tmp_path / "allowed"
    allowed.write_text("\n".join((*NAMES, "eve")))
    tls = {"tls_cert": cert, "tls_key": key, "client_ca": authority.ca, "allow": allowed}
    config = tiny_config(round={"participation": 0.3})

    async def main() -> None:
        async with running(config, tmp_path / "run", **tls) as address:
            peers = Peers(config, address, authority)
            await asyncio.to_thread(peers.prepare)
            with pytest.raises(kind) as raised:
                await asyncio.to_thread(PROVOKED[kind], peers)
            for client in peers.clients.values():
                client.close()
            assert raised.type is kind
            if isinstance(raised.value, WrongRound):
                assert raised.value.current == 0

    asyncio.run(main())


def test_a_server_that_stops_says_so(tmp_path: Path) -> None:
    config = tiny_config()

    async def main() -> None:
        engine = Engine(config, tmp_path)
        server = grpc.aio.server(interceptors=[Gate(engine, certified=False)])
        add_FederationServicer_to_server(FederationService(engine), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        engine.stop()
        async with clients(config, address, "ann") as (ann,):
            error = await refused(ann.join(), CODE.UNAVAILABLE)
            assert (wire.ERROR_KEY, "TransportError") in tuple(error.trailing_metadata() or ())
        client = Transport(Address.parse(address), Security())
        with pytest.raises(TransportError, match=f"no answer from {address}: .* is stopping"):
            await asyncio.to_thread(
                client.join, "ann", bytes(16), ann.fingerprint, wants_partition=False
            )
        client.close()
        await server.stop(None)
        await engine.close()

    asyncio.run(main())


class Hostile(FederationServicer):
    """Refuses every heartbeat in its own words."""

    def __init__(self, code: grpc.StatusCode, trailing: tuple[tuple[str, str], ...]) -> None:
        self._code = code
        self._trailing = trailing

    def Heartbeat(  # noqa: N802
        self,
        request: pb.HeartbeatRequest,  # noqa: ARG002
        context: grpc.ServicerContext,
    ) -> Any:
        context.set_trailing_metadata(self._trailing)
        context.abort(self._code, "two\nlines")


@contextmanager
def hostile(code: grpc.StatusCode, **trailing: str) -> Iterator[Transport]:
    server = grpc.server(ThreadPoolExecutor(1))
    said = tuple((f"prism-{key}", value) for key, value in trailing.items())
    add_FederationServicer_to_server(Hostile(code, said), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = Transport(Address("127.0.0.1", port), Security())
    try:
        yield client
    finally:
        client.close()
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("code", "trailing", "kind"),
    [
        (CODE.PERMISSION_DENIED, {}, NotInCohort),
        (CODE.PERMISSION_DENIED, {"error": "IdentityMismatch"}, IdentityMismatch),
        (CODE.PERMISSION_DENIED, {"error": "SessionUnknown"}, NotInCohort),
        (CODE.PERMISSION_DENIED, {"error": "KeyboardInterrupt"}, NotInCohort),
        (CODE.PERMISSION_DENIED, {"error": "__doc__"}, NotInCohort),
        (CODE.INTERNAL, {"error": "PrismError"}, ProtocolError),
        (CODE.DATA_LOSS, {"error": "StorageError"}, ProtocolError),
        (CODE.FAILED_PRECONDITION, {"error": "PrivacyError"}, RunMismatch),
        (CODE.INVALID_ARGUMENT, {"error": "ConfigError"}, PayloadError),
        (CODE.FAILED_PRECONDITION, {"round": "3"}, WrongRound),
        (CODE.FAILED_PRECONDITION, {"error": "WrongRound", "round": "3"}, WrongRound),
        (CODE.FAILED_PRECONDITION, {"error": "WrongRound"}, RunMismatch),
        (CODE.FAILED_PRECONDITION, {"error": "WrongRound", "round": "three"}, RunMismatch),
        (CODE.FAILED_PRECONDITION, {"error": "WrongRound", "round": "-1"}, RunMismatch),
        (CODE.FAILED_PRECONDITION, {"round": str(2**64)}, RunMismatch),
        (CODE.FAILED_PRECONDITION, {"round": "9" * 5000}, RunMismatch),
        (CODE.RESOURCE_EXHAUSTED, {"retry-seconds": "3"}, PayloadTooLarge),
        (CODE.RESOURCE_EXHAUSTED, {"error": "Busy", "retry-seconds": "9" * 5000}, Busy),
        (CODE.UNAVAILABLE, {"error": "SystemExit"}, TransportError),
        (CODE.DEADLINE_EXCEEDED, {"error": "WrongRound", "round": "3"}, TransportError),
        (CODE.CANCELLED, {"error": "WrongRound", "round": "3"}, TransportError),
    ],
    ids=str,
)
def test_a_hostile_server_cannot_choose_what_is_raised(
    code: grpc.StatusCode, trailing: dict[str, str], kind: type[PrismError]
) -> None:
    with hostile(code, **trailing) as client, pytest.raises(PrismError) as raised:
        client.heartbeat()
    assert raised.type is kind
    assert "\n" not in str(raised.value)
    if isinstance(raised.value, Busy):
        assert 0 <= raised.value.seconds <= 60


@given(
    st.sampled_from([code.name for code in CODE]),
    st.text(),
    st.sampled_from([*vars(errors), "", "Exception"]) | st.text(),
    st.text(st.sampled_from("0123456789-²٣ "), max_size=30),
)
def test_nothing_but_the_contract_comes_of_what_a_peer_says(
    status: str, text: str, name: str, round_: str
) -> None:
    numbers = [(key, round_) for key in (wire.ROUND_KEY, wire.RETRY_KEY)]
    trailing = [(wire.ERROR_KEY, name), *numbers, ("else-bin", b"\xff")]
    error = wire.error_of(status, text, trailing)
    assert type(error) in KINDS
    assert str(error) and len(str(error).splitlines()) == 1
    again = wire.error_of(error.status, str(error), wire.error_metadata(error))
    assert (type(again), again.args, vars(again)) == (type(error), error.args, vars(error))
