"""A run that is extended ends as one that was asked for all its rounds from the start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support import jsonl, timeless
from support_federation import TINY, Ended, federated

from client.trainer import draw_spread, learning_rate
from common.config import RunConfig, load_config, parse_config
from common.errors import ConfigError
from common.server_update import sharpened
from common.state import GlobalState, initial_scores

pytestmark = pytest.mark.usefixtures("one_thread")


def run(out: Path, *changes: str) -> Ended:
    """A federation to its end; what travelled is counted over all of it."""
    return asyncio.run(federated(parse_config(TINY, changes), out))


@pytest.mark.parametrize(
    "others",
    [
        ["schedule_rounds=3"],
        ["schedule_rounds=9", "codec.down=exact", "mada.enabled=true"],
        ["schedule_rounds=3", "method=fedavg"],
    ],
    ids=["after the schedules", "within the schedules", "weights"],
)
def test_extended_it_equals_a_run_of_all_rounds(tmp_path: Path, others: Sequence[str]) -> None:
    whole = run(tmp_path / "whole", "rounds=6", *others)
    part = run(tmp_path / "parts", "rounds=3", *others)
    assert part.digest != whole.digest
    extended = run(tmp_path / "parts", "rounds=6", *others)
    # Clients that start again fetch the state that they would have gone on with.
    assert replace(extended, down_bytes=whole.down_bytes) == whole
    assert extended.down_bytes >= whole.down_bytes
    lines = [timeless(jsonl(tmp_path / of / "metrics.jsonl")) for of in ("whole", "parts")]
    assert lines[0] == lines[1]


def test_without_a_schedule_of_its_own_it_keeps_the_one_that_it_had(tmp_path: Path) -> None:
    run(tmp_path, "rounds=2")
    extended = run(tmp_path, "rounds=4")
    assert load_config(tmp_path / "config.toml").schedule_rounds == 2
    assert extended.digest == run(tmp_path / "whole", "rounds=4", "schedule_rounds=2").digest
    with pytest.raises(ConfigError, match=r"has closed 4 rounds already: ask for rounds=4"):
        run(tmp_path, "rounds=3")
    with pytest.raises(ConfigError, match=r"schedule_rounds = 2 there, 9 here"):
        run(tmp_path, "rounds=6", "schedule_rounds=9")
    held = load_config(tmp_path / "config.toml")
    assert (held.rounds, held.schedule_rounds) == (4, 2)


def test_rounds_are_no_part_of_the_identity_and_schedules_are() -> None:
    def identity(*changes: str) -> bytes:
        return parse_config("", changes).run_id()

    assert identity("rounds=40") == identity("schedule_rounds=40", "rounds=90")
    assert identity("rounds=40") != identity("rounds=41")
    held = parse_config("rounds = 40")
    assert parse_config("rounds = 60").taking_up(held).run_id() == held.run_id()
    assert parse_config("rounds = 40").taking_up(held).schedule_rounds is None


def test_schedules_stay_as_they_ended() -> None:
    train = RunConfig().train
    last = train.learning_rate_final
    assert learning_rate(train, 8, 10) > last == learning_rate(train, 9, 10)
    assert learning_rate(train, 30, 10) == last
    assert draw_spread(train, 30, 10) == draw_spread(train, 9, 10) == 0
    config = parse_config("rounds = 90\nschedule_rounds = 10")
    scores = initial_scores(100, 1)
    assert sharpened(config, GlobalState(10, scores)).digest() != GlobalState(10, scores).digest()
    assert sharpened(config, GlobalState(11, scores)).digest() == GlobalState(11, scores).digest()
