"""The client's loop: what it retries, joins again, waits for, says and refuses."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support_client import CONFIG, Clock, ScriptedServer, process, take_part

from client.messages import Assignment, Finished, Wait
from client.trainer import LocalResult, Trainer
from common.codecs import ERROR_FEEDBACK, KEYFRAME
from common.downlink import StateStep
from common.errors import (
    Busy,
    PayloadError,
    PayloadTooLarge,
    PrismError,
    PrivacyError,
    ProtocolError,
    RunMismatch,
    SessionUnknown,
    TransportError,
)

pytestmark = pytest.mark.usefixtures("one_thread", "clock")


def test_a_whole_run_in_the_order_of_the_protocol(clock: Clock, trained: list[int]) -> None:
    server = ScriptedServer(CONFIG, [0, 1, 2, 3])
    take_part(server)
    first = ["join", "join", "await_round", "submit"]
    later = ["await_round", "fetch_state", "submit"]
    assert server.calls == [*first, *later, *later, *later, "await_round", "leave"]
    assert server.joins == [None, server.fingerprint], "asks for the run, then enrols"
    assert server.fetched == [0, 1, 2], "state 0 is built from the seed"
    assert trained == [0, 1, 2, 3]
    assert clock.slept == []
    for round_, update in enumerate(server.submitted):
        assert update.assignment.round == round_
        assert update.report.loss is not None and np.isfinite(update.report.loss)


def test_a_run_that_was_extended_is_agreed_to_again() -> None:
    short = CONFIG.model_copy(update={"rounds": 2, "schedule_rounds": 4})

    class Extended(ScriptedServer):
        def await_round(self) -> Assignment | Wait | Finished:
            outcome = super().await_round()
            if outcome == Assignment(2, self.broadcast.digest, *self.place):
                self.config = short.model_copy(update={"rounds": longer})
            return outcome

    for longer, submitted in ((4, 4), (2, 2)):
        server = Extended(short, [0, 1, 2, 3])
        if longer == 2:
            with pytest.raises(ProtocolError, match="round 2 of a run of 2 rounds"):
                take_part(server)
        else:
            take_part(server)
            assert server.joins == [None, server.fingerprint, None]
        assert len(server.submitted) == submitted


@pytest.mark.parametrize(
    "steps",
    [[], [StateStep(ERROR_FEEDBACK.wire, 1, b"\xff")], [StateStep(KEYFRAME.wire, 1, b"\0" * 436)]],
    ids=["none", "undecodable", "to another state"],
)
def test_a_bad_difference_is_replaced_by_a_keyframe(
    steps: list[StateStep], caplog: pytest.LogCaptureFixture
) -> None:
    server = ScriptedServer(CONFIG, [1, 2])
    server.spoil[True] = steps
    take_part(server)
    assert server.fetched == [0, None, 1, None]
    assert len(server.submitted) == 2
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2 and all("state of round" in line for line in warned)


def test_after_a_keyframe_it_goes_on_by_differences() -> None:
    server = ScriptedServer(CONFIG, [1, 2])
    server.trouble["fetch_state"] = [PayloadError("the state stream has no header")]
    take_part(server)
    assert server.fetched == [None, 1]
    assert len(server.submitted) == 2


def test_without_a_good_keyframe_it_ends(trained: list[int]) -> None:
    server = ScriptedServer(CONFIG, [1])
    server.spoil = {True: [], False: []}
    with pytest.raises(PayloadError, match="neither differences nor a keyframe") as raised:
        take_part(server)
    assert "\n" not in str(raised.value)
    assert (trained, server.submitted) == ([], [])


def test_it_backs_off_with_growing_pauses_until_its_patience_ends(clock: Clock) -> None:
    server = ScriptedServer(CONFIG)
    server.trouble["join"] = [TransportError("no answer from here")] * 100
    with pytest.raises(TransportError, match="no answer"):
        take_part(server, patience=60)
    # Doubled up to 15 s, and the last pause ends with the patience.
    assert clock.slept == [0.5, 1, 2, 4, 8, 15, 15, 14.5]
    assert sum(clock.slept) == 60


def test_without_patience_it_tries_once(clock: Clock) -> None:
    server = ScriptedServer(CONFIG)
    server.trouble["join"] = [TransportError("no answer")] * 2
    with pytest.raises(TransportError):
        take_part(server, patience=0)
    assert (server.calls, clock.slept) == (["join"], [])


def test_patience_starts_anew_with_every_answer(clock: Clock, trained: list[int]) -> None:
    server = ScriptedServer(CONFIG, [0, 1])
    lost = [TransportError("no answer")] * 4
    for method in ("join", "await_round", "fetch_state", "submit"):
        server.trouble[method] = list(lost)
    take_part(server, patience=10)
    assert clock.slept == [0.5, 1, 2, 4] * 4
    assert trained == [0, 1], "an update is sent again, not made again"
    assert [update.assignment.round for update in server.submitted] == [0, 1]


def test_a_busy_server_is_left_alone_for_as_long_as_it_says(
    clock: Clock, trained: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = ScriptedServer(CONFIG, [0])
    server.trouble["submit"] = [Busy("too many updates", 7.0)] * 3
    take_part(server, patience=1)
    assert clock.slept == [7.0 * 1.5] * 3, "and no sooner"
    assert caplog.text.count("too many updates; again in 7 s") == 1
    assert trained == [0], "the update is sent again, not made again"
    assert [update.assignment.round for update in server.submitted] == [0]


def test_an_unknown_session_is_joined_again(clock: Clock, trained: list[int]) -> None:
    server = ScriptedServer(CONFIG, [0, 1])
    for method in ("await_round", "fetch_state", "submit"):
        server.trouble[method] = [SessionUnknown("no such session")]
    take_part(server)
    assert server.joins == [None, *[server.fingerprint] * 4]
    assert clock.slept == [0, 0, 0], "the first time at once"
    assert trained == [0, 1]
    assert [update.assignment.round for update in server.submitted] == [0, 1]


def test_sessions_that_keep_ending_are_joined_ever_more_slowly(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = ScriptedServer(CONFIG)
    server.trouble["await_round"] = [SessionUnknown("no such session")] * 7
    take_part(server)
    assert clock.slept == [0, 1, 3, 7, 15, 30, 30]
    assert "is another client using this name and state?" in caplog.text


def test_what_trying_again_does_not_mend_ends_it(clock: Clock) -> None:
    for error in (PayloadTooLarge("too large"), ProtocolError("no such method")):
        server = ScriptedServer(CONFIG, [0])
        server.trouble["submit"] = [error]
        with pytest.raises(type(error)):
            take_part(server)
    assert clock.slept == []


@pytest.mark.parametrize("error", [TransportError("no answer"), SessionUnknown("gone")])
def test_a_farewell_that_fails_does_not_matter(error: PrismError) -> None:
    server = ScriptedServer(CONFIG)
    server.trouble["leave"] = [error, error]
    with process(server) as one:
        one.run()
        one.leave()
    assert server.calls[-2:] == ["leave", "leave"]


def test_what_it_waits_for_is_said_once_until_it_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    few, ann = Wait("for clients"), Wait("for ann")
    server = ScriptedServer(CONFIG, [few, few, few, ann, ann, 0, ann, ann])
    take_part(server)
    said = [record.message for record in caplog.records if "waiting" in record.message]
    assert said == ["waiting: for clients", *["waiting: for ann"] * 2], "again after its round"


def test_each_outage_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    few, lost = Wait("for clients"), TransportError("no answer")
    server = ScriptedServer(CONFIG, [few, lost, lost, few, 1])
    server.trouble["fetch_state"] = [lost, lost]
    server.trouble["submit"] = [lost]
    take_part(server)
    said = [r.message for r in caplog.records if "waiting" in r.message or "no answer" in r.message]
    again = "no answer; trying again for up to 600 s"
    assert said == ["waiting: for clients", again, "waiting: for clients", again, again]


def test_heartbeats_go_on_while_it_trains_whatever_becomes_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = ScriptedServer(CONFIG, [0])
    server.lease = 1e-3
    server.trouble["heartbeat"] = [TransportError("no answer"), SessionUnknown("gone")]
    train = Trainer.train

    def slow(self: Trainer, *arguments: Any) -> LocalResult:
        for _ in range(3):
            server.beaten.clear()
            assert server.beaten.wait(20)
        return train(self, *arguments)

    monkeypatch.setattr(Trainer, "train", slow)
    take_part(server)
    assert len(server.submitted) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_it_does_not_enrol_in_a_run_that_it_cannot_rebuild() -> None:
    server = ScriptedServer(CONFIG)
    server.fingerprint = replace(server.fingerprint, weights_digest=bytes(32))
    with pytest.raises(RunMismatch, match="weights"):
        take_part(server)
    assert server.joins == [None]


def test_it_does_not_enrol_in_a_run_that_is_less_private_than_it_wants() -> None:
    server = ScriptedServer(CONFIG)
    with pytest.raises(PrivacyError, match="no privacy mechanism"):
        take_part(server, max_epsilon=1.0)
    assert server.joins == [None]


@pytest.mark.parametrize("lease", [0.0, -1.0, float("nan")])
def test_a_lease_that_is_none_is_refused(lease: float) -> None:
    server = ScriptedServer(CONFIG)
    server.lease = lease
    with pytest.raises(ProtocolError, match="leases of"):
        take_part(server)
    assert "await_round" not in server.calls
