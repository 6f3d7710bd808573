"""What `prism run` shows, of a directory and logs as a run leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from support import tiny_config

from prism.run.display import RunDisplay

ROUND = {"clients": 2, "lambda": 0.25, "entropy_bits": 0.5, "seconds": 2.0}
SAID = {
    "server": "2025-01-31T23:59:59.123+00:00 INFO round 2: waiting for the update of client-1",
    "client-0": "2025-01-31T23:59:59.123+00:00 WARNING round 2: \x1b[2Jno such [b]thing[/b]",
    "client-1": "prism client: something else",
}


def shown(folder: Path, **changes: Any) -> tuple[RunDisplay, str]:
    rounds = [{**ROUND, "round": number, "loss": 4.0 - number} for number in range(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rounds))
    call = {"round": 0, "direction": "up", "message_bytes": 1500}
    (folder / "comm.jsonl").write_text(json.dumps(call) + "\n")
    evaluated = {"round": 2, "FD (small)": 12.5, "KID (small)": 0.5, "seconds": 1.0}
    (folder / "evaluation.jsonl").write_text(json.dumps(evaluated) + "\n")
    display = RunDisplay(tiny_config(**changes), folder)
    display.members = [
        SimpleNamespace(name=name, last_line=lambda said=said: said)  # type: ignore[misc]
        for name, said in SAID.items()
    ]
    console = Console(width=100, record=True, force_terminal=False)
    with display, console.capture() as captured:
        console.print(display._all())
    return display, captured.get()


def test_what_a_terminal_shows(tmp_path: Path) -> None:
    _, text = shown(tmp_path, output={"evaluate_every": 2})
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:4] == ["round", "clients", "loss", "FD"]
    assert lines[1] == ["0", "2", "4", "0.250", "0.500", "1.5", "kB", "0", "B", "2.0"]
    assert lines[2][:4] == ["1", "2", "3", "12.5"]
    assert "server    round 2: waiting for the update of client-1" in text
    assert "client-0  round 2: ?[2Jno such [b]thing[/b]" in text
    assert "client-1  prism client: something else" in text
    assert "loss  █▁  3" in text
    assert "2/3 rounds" in text


def test_no_column_says_the_same_in_every_row(tmp_path: Path) -> None:
    _, text = shown(tmp_path, mada={"enabled": False})
    assert "lambda" not in text and "FD" not in text.splitlines()[0]


def test_a_line_a_round_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    display, _ = shown(tmp_path, output={"evaluate_every": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**ROUND, "round": 2, "loss": None}) + "\n")
    with (tmp_path / "evaluation.jsonl").open("a") as file:
        file.write(json.dumps({"round": 3, "FD (small)": 11.0}) + "\n")
    display.refresh()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "round 2  clients 2  loss -  lambda 0.250  entropy 0.500  up 0 B  down 0 B"
    )
    assert second == "after 3 rounds  FD (small) 11"
