"""The client's updates: sent again after a restart or a lost call, made anew only when void."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
import torch
from support_client import CONFIG, ScriptedServer, Submitted, take_part

from common.errors import (
    AlreadyExists,
    NotInCohort,
    PrismError,
    StorageError,
    TransportError,
    WrongRound,
)
from common.files import sealed, unsealed

pytestmark = pytest.mark.usefixtures("one_thread", "clock")


@pytest.fixture
def unacknowledged(tmp_path: Path, trained: list[int]) -> Submitted:
    """The update of a process that ended before it was acknowledged; kept in tmp_path."""
    whole = ScriptedServer(CONFIG, [0])
    take_part(whole)
    server = ScriptedServer(CONFIG, [0])
    server.trouble["submit"] = [TransportError("the server is gone")]
    with pytest.raises(TransportError):
        take_part(server, tmp_path, patience=0)
    assert (trained, server.submitted) == ([0, 0], [])
    trained.clear()
    return whole.submitted[0]


def test_an_update_is_sent_again_after_a_restart(
    tmp_path: Path, unacknowledged: Submitted, trained: list[int]
) -> None:
    server = ScriptedServer(CONFIG, [0, 1])
    take_part(server, tmp_path)
    again, _ = server.submitted
    assert trained == [1], "round 0 is not trained again"
    assert again.payloads == unacknowledged.payloads
    assert again.report == unacknowledged.report


def test_after_a_restart_it_trains_on_as_if_there_had_been_none(
    tmp_path: Path, unacknowledged: Submitted
) -> None:
    uninterrupted, restarted = (ScriptedServer(CONFIG, [0, 1, 2]) for _ in range(2))
    take_part(uninterrupted)
    take_part(restarted, tmp_path)
    for one, other in zip(uninterrupted.submitted, restarted.submitted, strict=True):
        assert one.payloads == other.payloads


@pytest.mark.parametrize("place", [(1, 2), (0, 2)])
def test_an_update_for_another_place_is_made_anew(
    tmp_path: Path, unacknowledged: Submitted, trained: list[int], place: tuple[int, int]
) -> None:
    server = ScriptedServer(CONFIG, [0])
    server.place = place
    take_part(server, tmp_path)
    assert trained == [0]
    (update,) = server.submitted
    assert (update.assignment.rank, update.assignment.cohort_size) == place


def test_an_update_of_another_run_is_not_sent(
    tmp_path: Path, unacknowledged: Submitted, trained: list[int]
) -> None:
    server = ScriptedServer(CONFIG.model_copy(update={"seed": 2}), [0])
    take_part(server, tmp_path)
    assert trained == [0]
    assert server.submitted[0].payloads != unacknowledged.payloads


def test_a_trainer_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, unacknowledged: Submitted
) -> None:
    path, buffer = tmp_path / "trainer.pt", io.BytesIO()
    kept = torch.load(io.BytesIO(unsealed(path.read_bytes())), weights_only=True)
    del kept["trainer"]["averages"]
    torch.save(kept, buffer)
    path.write_bytes(sealed(buffer.getvalue()))
    with pytest.raises(StorageError, match="does not fit this run; delete it") as raised:
        take_part(ScriptedServer(CONFIG, [0]), tmp_path)
    assert "\n" not in str(raised.value)


def test_a_wrong_round_voids_the_update(trained: list[int]) -> None:
    server = ScriptedServer(CONFIG, [0, 0, 1])
    server.trouble["submit"] = [WrongRound("the cohort is another now", 0)]
    take_part(server)
    assert trained == [0, 0, 1], "made again for the same round"
    assert [update.assignment.round for update in server.submitted] == [0, 1]


def test_a_round_that_is_over_before_its_state_is_here_is_skipped(trained: list[int]) -> None:
    server = ScriptedServer(CONFIG, [1, 2])
    server.trouble["fetch_state"] = [WrongRound("that round is over", 2)]
    take_part(server)
    assert trained == [2]
    assert server.fetched == [0]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (NotInCohort("not asked to train"), "round 0 goes on without this client"),
        (AlreadyExists("a different update is in"), "round 0: a different update is in"),
    ],
)
def test_a_refused_update_does_not_end_the_client(
    error: PrismError, says: str, trained: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = ScriptedServer(CONFIG, [0, 0, 1])
    server.trouble["submit"] = [error]
    take_part(server)
    assert says in caplog.text
    assert trained == [0, 1], "asked again for the same, it sends what it made"
    assert [update.assignment.round for update in server.submitted] == [0, 1]
