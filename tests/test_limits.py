"""What strangers and broken clients can take up: joins, sessions, bytes that come to nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest
from support import NAMES, TIMEOUT, RawClient, clients, federation, refused, running, tiny_config

from common.errors import Busy
from common.rpc.prism.v1 import federation_pb2 as pb
from server import limits
from server.limits import FETCHES, LEAST_WASTE, Budget, Limits, network

CODE = grpc.StatusCode


def test_a_budget_comes_back_within_a_minute() -> None:
    budget = Budget(30)
    for _ in range(30):
        assert budget.wait("a", 100.0) == 0
        budget.spend("a", 100.0, 1)
    assert budget.wait("a", 100.0) == 0, "the last one is spent, and no more is owed"
    budget.spend("a", 100.0, 3)
    assert budget.wait("a", 100.0) == 6 and budget.wait("b", 100.0) == 0
    assert budget.wait("a", 106.0) == 0
    budget.spend("a", 200.0, 1e9)
    assert budget.wait("a", 200.0) == 60, "debts are no longer than a minute"


def test_budgets_do_not_grow_with_the_addresses() -> None:
    budget = Budget(10)
    for number in range(20_000):
        budget.spend(str(number), 0.0, 100)
    assert len(budget._spent) < 5000
    assert budget.wait("19999", 0.0) > 0


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("[2001:db8:1:2:3:4:5:6]", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2:ffff::1]", "2001:db8:1:2::/64"),
        ("[fe80::1%eth0]", "fe80::/64"),
        ("[::ffff:192.0.2.7]", "192.0.2.7"),
        ("unix", "unix"),
    ],
)
def test_what_counts_as_one_address(host: str, key: str) -> None:
    assert network(host) == key


def test_an_address_has_half_of_the_sessions() -> None:
    run, open_ = Limits(tiny_config()), set[str]()

    def enrol(host: str, number: int) -> None:
        run.enrol(host, open_.__contains__)
        open_.add(f"{host} {number}")
        run.opened(host, f"{host} {number}")

    half = run.most_sessions // 2
    for host in ("192.0.2.1", "192.0.2.2"):
        for number in range(half):
            enrol(host, number)
        with pytest.raises(Busy):
            enrol(host, half)
    with pytest.raises(Busy, match="as many sessions as it takes"):
        enrol("192.0.2.3", 0)
    open_.discard("192.0.2.1 0")
    enrol("192.0.2.3", 0)


def test_states_fetched_again_and_again_are_waste() -> None:
    run = Limits(tiny_config())
    for round_ in range(100):
        for _ in range(FETCHES):
            run.fetched("ann", round_, LEAST_WASTE, 0.0)
    run.session("ann", 0.0)
    for _ in range(3):
        run.fetched("ann", 99, LEAST_WASTE, 0.0)
    with pytest.raises(Busy):
        run.session("ann", 0.0)
    run.session("bob", 0.0)


def test_a_client_whose_bytes_come_to_nothing_is_told_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LEAST_WASTE", 2000)

    async def main() -> None:
        async with federation(tmp_path) as (ann, bob, _):
            given = await ann.assignment()
            payload = ann.payload(0)
            header = ann.header(given, payload, payload_digest=bytes(32))
            for _ in range(50):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await ann.send(header, payload)
                if raised.value.code() is CODE.RESOURCE_EXHAUSTED:
                    break
                assert raised.value.code() is CODE.INVALID_ARGUMENT
            error = await refused(ann.await_round(0), CODE.RESOURCE_EXHAUSTED)
            assert "bytes of ann came to nothing" in (error.details() or "")
            told = {str(key): str(value) for key, value in error.trailing_metadata() or ()}
            assert told["prism-error"] == "Busy" and 1 <= int(told["prism-retry-seconds"]) <= 60
            await bob.submit(await bob.assignment())

    asyncio.run(main())


def test_a_flood_of_joins_leaves_little_behind(tmp_path: Path) -> None:
    """Without TLS, from the very address of the honest clients."""
    config = tiny_config()
    flood = 600

    async def main() -> None:
        async with (
            running(config, tmp_path) as address,
            clients(config, address, *NAMES) as honest,
            grpc.aio.insecure_channel(address) as channel,
        ):
            for client in honest:
                await client.join()
            eve = RawClient(config, channel, "eve")

            async def join(number: int) -> grpc.StatusCode:
                request = eve.join_request(
                    client_name=f"eve-{number}", instance=number.to_bytes(16, "big")
                )
                try:
                    await eve.stub.Join(request, timeout=TIMEOUT)
                except grpc.aio.AioRpcError as error:
                    return error.code()
                return CODE.OK

            codes = [await join(number) for number in range(flood)]
            assert {*codes} == {CODE.OK, CODE.RESOURCE_EXHAUSTED}
            assert codes.count(CODE.OK) < Limits(config).most_sessions
            # Nobody waits for those who only joined.
            for round_ in range(2):
                for client in honest:
                    given = await client.assignment()
                    assert (given.round, given.cohort_size) == (round_, len(NAMES))
                    await client.submit(given)
            status = await eve.stub.GetStatus(pb.GetStatusRequest(), timeout=TIMEOUT)
            assert [known.name for known in status.clients] == list(NAMES)

    asyncio.run(main())
    # Two lines a join would be 200,000 bytes.
    assert (tmp_path / "comm.jsonl").stat().st_size < 50_000
