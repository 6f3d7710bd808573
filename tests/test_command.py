"""The `prism` command answers at once: it imports no more than was asked for."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.ledger import Entry, Ledger
from prism.command_line import COMMANDS, subcommand

HEAVY = {"torch", "numpy", "scipy", "sklearn", "grpc", "matplotlib", "rich"}
PROGRAM = """
import atexit, json, sys
from pathlib import Path
from prism.__main__ import main
loaded = sys.argv.pop(1)
atexit.register(lambda: Path(loaded).write_text(json.dumps(sorted(sys.modules))))
sys.argv[0] = "prism"
main()
"""


def prism(tmp_path: Path, *words: str | Path, **environment: str) -> tuple[str, set[str]]:
    """What a command prints, and which modules it imported."""
    loaded = tmp_path / "loaded.json"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, loaded, *words],
        env=os.environ | {"COLUMNS": "80"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, set(json.loads(loaded.read_text()))


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    for words in (["--help"], ["--version"], ["--show-completion", "bash"]):
        _, loaded = prism(tmp_path, *words, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
        assert HEAVY & loaded == set(), words


def test_short_helps_are_true_and_take_one_line(tmp_path: Path) -> None:
    said, _ = prism(tmp_path, "--help")
    lines = [line.strip() for line in said.split("Commands:")[1].strip().splitlines()]
    assert [line.split(maxsplit=1) for line in lines] == [
        [name, (subcommand(name).help or "").splitlines()[0]] for name in COMMANDS
    ]
    assert {name: command.help for name, command in COMMANDS.items()} == dict(
        line.split(maxsplit=1) for line in lines
    )


def test_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    def complete(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        said, loaded = prism(tmp_path, _PRISM_COMPLETE="complete_bash", **words)
        assert HEAVY & loaded == set(), line
        return said.split()

    assert complete("prism ") == list(COMMANDS)
    assert complete("prism pr") == ["privacy"]
    assert "--max-epsilon" in complete("prism client --")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_imports_nothing_heavy(tmp_path: Path, name: str) -> None:
    said, loaded = prism(tmp_path, name, "--help")
    assert f"Usage: prism {name}" in said
    assert HEAVY & loaded == set()


def test_a_runs_bytes_are_added_up_without_torch(tmp_path: Path) -> None:
    line = {"round": 0, "client": "ann", "rpc": "SubmitUpdate", "direction": "up", "calls": 1}
    line |= {"payload_bytes": 100, "message_bytes": 110}
    (tmp_path / "comm.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "config.toml").write_text('name = "tiny"\n[data]\nname = "digits"\n')
    said, loaded = prism(tmp_path, "comm", tmp_path)
    assert "tiny: " in said
    assert "torch" not in loaded


def test_a_guarantee_is_stated_without_torch(tmp_path: Path) -> None:
    encoder = {"name": "small", "layers": [3], "pool": 1}
    moments = ("moments", "ab" * 16, None, 100, "cd" * 32, encoder, 128)
    Ledger(tmp_path).append(Entry(*moments, (0.014, 0.014), (0.1, 0.1), 1.0, 1e-5, None))
    said, loaded = prism(tmp_path, "privacy", tmp_path)
    assert "Record-level" in said
    assert "torch" not in loaded


def test_a_link_is_metered_without_torch(tmp_path: Path) -> None:
    loaded, address = tmp_path / "loaded.json", tmp_path / "address"
    words = ("relay", "--to", "127.0.0.1:1", "--address-file", str(address))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(loaded), *words])
    try:
        while not address.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert HEAVY & set(json.loads(loaded.read_text())) == set()
