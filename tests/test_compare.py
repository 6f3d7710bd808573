"""`prism compare`: what runs left, beside one another."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.config import parse_config
from prism.commands.compare import compare
from prism.comparison import Run, differences

Said = pytest.CaptureFixture[str]


def lines(path: Path, *values: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs of two rounds; only the first was evaluated."""
    made = []
    for name, steps in (("a", 5), ("b [x]", 7)):
        run = tmp_path / name
        run.mkdir()
        made.append(run)
        config = parse_config(f'name = "{name}"\n[train]\nlocal_steps = {steps}')
        (run / "config.toml").write_text(config.to_toml())
        rounds = ({"round": t, "loss": 3.0 - t, "seconds": 1.5, "clients": 2} for t in (0, 1))
        lines(run / "metrics.jsonl", *rounds)
        call = {"client": "ann", "rpc": "SubmitUpdate", "payload_bytes": 1, "calls": 1}
        lines(
            run / "comm.jsonl",
            {**call, "round": 0, "direction": "up", "message_bytes": 1_000_000},
            {**call, "round": 1, "direction": "down", "message_bytes": 2_000_000},
            # Heard of the end after the last round.
            {**call, "round": 2, "direction": "down", "message_bytes": 500_000},
        )
    figures = {"FD (small)": 40.0, "coverage": 0.5, "seconds": 1.0}
    lines(
        made[0] / "evaluation.jsonl",
        {"round": 1, **figures},
        {"round": 2, **figures, "FD (small)": 20.0},
    )
    return made


def test_a_table_and_where_the_configs_differ(
    runs: list[Path], capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    compare(runs)
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "run method rounds FD (small) coverage loss MB up MB down seconds s a round",
        "a prism 2 20 0.5 2 1 2.5 3 1.50",
        "b [x] prism 2 - - 2 1 2.5 3 1.50",
        "train.local_steps: 5, 7",
    ]


def test_for_programs(runs: list[Path], capsys: Said) -> None:
    compare(runs, as_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["FD (small)"], first["up_bytes"], first["down_bytes"]) == (20, 10**6, 2_500_000)
    assert "FD (small)" not in second and second["coverage"] is None


def test_curves(runs: list[Path], tmp_path: Path) -> None:
    compare(runs, plot=tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    run = Run.read(runs[0])
    assert run.bytes == (1_000_000, 3_500_000)
    assert [run.bytes_until(closed) for closed in (1, 2)] == [1_000_000, 3_500_000]
    assert differences([run, run]) == {}


def test_what_cannot_be_compared(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cannot read config"):
        compare([tmp_path / "none"])
    with pytest.raises(SystemExit, match="cannot write"):
        compare(runs, plot=tmp_path / "curves.what")
    (runs[1] / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit, match="has closed no round yet"):
        compare(runs)
    (runs[1] / "metrics.jsonl").write_text('{"round": "x"}\n')
    with pytest.raises(SystemExit, match="line 1: not what this program writes"):
        compare(runs)
