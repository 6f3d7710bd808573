"""What the journal recovers: rounds, updates, checkpoints; and one run, one server a directory."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
from support import running, serve_finished, tiny_config, whole_run

from common.cells import CODE_SIZE, CellTable
from common.config import RunConfig, load_config
from common.errors import ConfigError, StorageError
from common.report import Report
from common.state import GlobalState
from common.theory import MaskBits
from server.attendance import Absence
from server.engine import Engine
from server.journal import Journal
from server.recovered import Checkpoint, Recovered, StoredUpdate

SAID = Report(0.5, MaskBits(0.7, 0.1), (1, 2), CellTable.of([[0.5] * CODE_SIZE], [20]))


def update(client: str, report: Report = SAID) -> StoredUpdate:
    payload = client.encode() * 5
    return StoredUpdate(client, hashlib.sha256(payload).digest(), (3, 2), report, payload)


def reopened(out: Path, config: RunConfig) -> Recovered:
    journal = Journal(out, config)
    try:
        return journal.recover()
    finally:
        journal.close()


def test_journal_tells_what_happened(tmp_path: Path) -> None:
    config = tiny_config()
    journal = Journal(tmp_path, config)
    assert journal.recover() == Recovered()
    journal.append_partition("a", 0)
    journal.append_open(0, ("a", "b"))
    journal.append_update(update("a"))
    journal.append_missed(("b",))
    journal.append_open(1, ("a", "c"))
    journal.append_update(update("c", Report()))
    journal.sync()
    journal.close()
    found = reopened(tmp_path, config)
    assert (found.checkpoint, found.partitions, found.draw) == (None, {"a": 0}, 1)
    assert (found.cohort, found.closing) == (("a", "c"), False)
    assert found.updates == {"a": update("a"), "c": update("c", Report())}
    assert found.updates["a"].segments() == [b"aaa", b"aa"]
    assert found.absences == {"b": Absence(1, 0)}

    journal = Journal(tmp_path, config)
    journal.recover()
    journal.append_close()
    journal.append_partition("late", 1)
    state = GlobalState(1, np.arange(-5, 5, dtype=np.int16))
    residual = {"residual": np.linspace(0, 1, 4, dtype=np.float32)}
    metrics, absences = {"round": 0, "lambda": 0.25}, {"b": Absence(3, 0)}
    journal.checkpoint(Checkpoint(state, ("a", "c"), metrics, residual, absences=absences))
    journal.append_partition("later", 2)
    journal.sync()
    journal.close()
    found = reopened(tmp_path, config)
    assert found.round == 1 and found.checkpoint is not None
    assert found.checkpoint.state.digest() == state.digest()
    assert found.checkpoint.members == ("a", "c")
    assert found.checkpoint.metrics == {"round": 0, "lambda": 0.25}
    assert np.array_equal(found.checkpoint.arrays["residual"], residual["residual"])
    assert found.partitions == {"a": 0, "late": 1, "later": 2}
    assert (found.cohort, found.updates, found.closing) == ((), {}, False)
    assert found.absences == found.checkpoint.absences == absences
    assert [p.name for p in (tmp_path / "journal").glob("round-*")] == ["round-000001.log"]


def test_a_crash_around_the_checkpoint_loses_nothing(tmp_path: Path) -> None:
    config = tiny_config()
    journal = Journal(tmp_path, config)
    journal.recover()
    journal.append_partition("a", 0)
    journal.append_open(0, ("a",))
    journal.sync()
    files = tmp_path / "journal"
    old_log = (files / "round-000000.log").read_bytes()
    state = GlobalState(1, np.zeros(4, dtype=np.int16))
    journal.checkpoint(Checkpoint(state, (), {"round": 0}, {}))
    journal.close()
    # Replaced, but the new log not begun and the old one not removed.
    (files / "round-000000.log").write_bytes(old_log)
    (files / "round-000001.log").unlink()
    found = reopened(tmp_path, config)
    assert (found.round, found.partitions, found.cohort) == (1, {"a": 0}, ())
    # Written, but not renamed.
    (files / "checkpoint.tmp").write_bytes(b"half")
    assert reopened(tmp_path, config).round == 1


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    config = tiny_config()
    journal = Journal(tmp_path, config)
    journal.recover()
    state = GlobalState(1, np.zeros(4, dtype=np.int16))
    journal.checkpoint(Checkpoint(state, (), {"round": 0}, {}))
    journal.close()
    path = tmp_path / "journal" / "checkpoint"
    data = path.read_bytes()
    for damaged in (b"", data[:-1], data[:40] + b"?" + data[41:]):
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match="corrupt"):
            reopened(tmp_path, config)


def test_a_directory_belongs_to_one_run(tmp_path: Path) -> None:
    reopened(tmp_path, tiny_config())
    reopened(tmp_path, tiny_config())
    with pytest.raises(ConfigError, match="holds another run"):
        Journal(tmp_path, tiny_config(seed=2))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use"):
        Journal(tmp_path / "file", tiny_config())


def test_operational_keys_may_change_and_the_journal_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before, after = tiny_config(), tiny_config(round={"quorum": 0.25})
    reopened(tmp_path, before)
    entry = {"round": 0, "changed": {"round.quorum": [before.round.quorum, 0.25]}}
    assert reopened(tmp_path, after).changes == [entry]
    assert f"round.quorum is 0.25 from round 0 on; it was {before.round.quorum}" in caplog.text
    assert load_config(tmp_path / "config.toml") == after
    journal = Journal(tmp_path, after)
    assert journal.recover().changes == [entry], "said once"
    state = GlobalState(1, np.zeros(4, dtype=np.int16))
    journal.checkpoint(Checkpoint(state, (), {"round": 0}, {}))
    journal.close()
    assert reopened(tmp_path, before).changes[0] == entry, "kept with the checkpoint"
    assert [e["round"] for e in reopened(tmp_path, before).changes] == [0, 1]


def test_two_servers_cannot_share_a_directory(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tiny_config(), tmp_path):
            with pytest.raises(ConfigError, match="another server is using"):
                async with running(tiny_config(), tmp_path):
                    pass
        async with running(tiny_config(), tmp_path):
            pass

    asyncio.run(main())


def test_an_engine_resumed_with_damage_gives_the_directory_back(tmp_path: Path) -> None:
    config = tiny_config(rounds=1)
    asyncio.run(whole_run(config, tmp_path))
    path = tmp_path / "journal" / "checkpoint"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(StorageError):
        Engine(config, tmp_path)
    path.write_bytes(data)
    asyncio.run(serve_finished(config, tmp_path))
