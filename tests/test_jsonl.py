"""The lines that a restart cuts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.jsonl import cut_lines, last_round


def test_a_restart_cuts_later_rounds_and_what_is_no_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lines.jsonl"
    cut_lines(path)
    assert last_round(path) is None
    good = [json.dumps({"round": round_, "seconds": 0.5}) for round_ in range(4)]
    broken = ["[]", "{}", '{"round": "1"}', '{"round": 1.5}', "null", "{", "\udc80"]
    whole = "\n".join([*good[:2], *broken, *good[2:]]) + '\n{"round": 4'
    path.write_bytes(whole.encode("utf-8", "surrogateescape"))
    cut_lines(path)
    assert path.read_text().splitlines() == good
    assert caplog.text.count("not written whole") == len(broken) + 1
    cut_lines(path, 2)
    assert path.read_text().splitlines() == good[:2]
    assert last_round(path) == 1
