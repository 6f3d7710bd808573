"""The ledger reads back what was recorded, and tells tampering from a crash."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from support_privacy import config

from client.ledger import Entry, Ledger
from client.privacy_guard import Guard
from common.errors import StorageError


def entry(**changes: Any) -> Entry:
    plain = Entry("moments", "ab", None, 9, "cd", {"pool": 4}, 7, (0.1, 0.1), (1.0, 1.0), 1.0, 1e-5, None)  # fmt: skip  # noqa: E501
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path)
    for round_ in range(3):
        ledger.append(entry(round=round_))
    return ledger


def test_a_ledger_reads_back(ledger: Ledger) -> None:
    entries = ledger.entries()
    assert [e.round for e in entries] == [0, 1, 2]
    assert dataclasses.replace(entries[0], time="") == entry(round=0)
    assert entries[0].mu == pytest.approx(math.sqrt(0.02))


def test_tampering_is_detected(ledger: Ledger, tmp_path: Path) -> None:
    lines = ledger.path.read_text().splitlines(keepends=True)
    weaker = lines[1].replace('"epsilon": 1.0', '"epsilon": 0.1')
    assert weaker != lines[1]
    for forged, says in (
        ([lines[0], weaker, lines[2]], "line 2 is not what"),
        ([lines[0], lines[2]], "line 2 is not what"),
        ([lines[1], lines[0], lines[2]], "line 1 is not what"),
        (lines[:2], "missing at its end"),
        ([], "missing at its end"),
        ([*lines, "no json\n"], "line 4 is no entry"),
        ([*lines, "{}\n"], "line 4 is no entry"),
    ):
        ledger.path.write_text("".join(forged))
        with pytest.raises(StorageError, match=says):
            ledger.entries()
        with pytest.raises(StorageError, match="tampered"):
            Guard(tmp_path).agree(config())
        with pytest.raises(StorageError):
            ledger.append(entry())
    ledger.path.write_text("".join(lines))
    ledger.release_path("f" * 64).write_bytes(b"")
    with pytest.raises(StorageError, match="does not know release-"):
        ledger.entries()


def test_a_line_that_a_crash_cut_short_is_forgotten(ledger: Ledger) -> None:
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + b'{"cut": ')
    assert len(ledger.entries()) == 3
    ledger.append(entry(round=3))
    assert [e.round for e in ledger.entries()] == [0, 1, 2, 3]


def test_a_crash_before_the_head_was_written(ledger: Ledger) -> None:
    previous = json.loads(ledger.path.read_text().splitlines()[-1])["previous"]
    (ledger.path.parent / "ledger.head").write_text(previous)
    ledger.append(entry(round=3))
    assert len(ledger.entries()) == 4
