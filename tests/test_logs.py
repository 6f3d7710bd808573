"""Logs have date and level, in lines or objects; the server's is in the run's directory too."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from support import background, jsonl
from test_end_to_end import TINY, wait_for_line

PROGRAM = """
import logging, sys
from pathlib import Path
from common.logs import Log, LogFormat, LogLevel
level, form, file = sys.argv[1:]
log = Log(LogLevel(level), LogFormat(form), held=True)
logging.getLogger("server.x").info("early")
logging.getLogger("another").info("not ours")
log.into(Path(file))
logging.getLogger("client.x").debug("detail")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("server.x").exception("broke")
raise log.ended("prism server", ValueError("the end"))
"""


def logged(level: str, form: str, file: Path) -> tuple[str, str]:
    words = [sys.executable, "-c", PROGRAM, level, form, str(file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr, file.read_text()


def test_a_line_has_date_level_and_message(tmp_path: Path) -> None:
    console, file = logged("info", "text", tmp_path / "logs" / "it.log")
    first, broke, *trace = file.splitlines()
    for line, rest in ((first, ["INFO", "early"]), (broke, ["ERROR", "broke"])):
        when, *words = line.split()
        assert datetime.fromisoformat(when).utcoffset() is not None
        assert words == rest
    assert trace[0].startswith("Traceback")
    # A person finds the last line on the screen as it is.
    assert console.splitlines()[-1] == "prism server: the end"
    assert trace[-1].endswith("ERROR prism server: the end")
    assert console.splitlines()[:-1] == file.splitlines()[:-1]


def test_a_program_gets_an_object_a_line(tmp_path: Path) -> None:
    console, file = logged("debug", "json", tmp_path / "it.log")
    assert console == file
    said = [json.loads(line) for line in file.splitlines()]
    assert [(line["level"], line["message"]) for line in said] == [
        ("INFO", "early"),
        ("DEBUG", "detail"),
        ("ERROR", "broke"),
        ("ERROR", "prism server: the end"),
    ]
    assert "ZeroDivisionError" in said[2]["traceback"]
    assert said[0]["logger"] == "server.x"


def test_no_more_than_was_asked_for(tmp_path: Path) -> None:
    _, file = logged("error", "text", tmp_path / "it.log")
    assert "early" not in file and "broke" in file


def test_a_file_that_stderr_goes_to_gets_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "it.log"
    with path.open("wb") as stream:
        words = [sys.executable, "-c", PROGRAM, "info", "text", str(path)]
        subprocess.run(words, stderr=stream, timeout=60)
    assert path.read_text().count("early") == 1
    assert path.read_text().count("the end") == 1


def test_a_disk_that_is_full_is_told_once() -> None:
    # Whatever is written to this device fails as on a full disk.
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    words = [sys.executable, "-c", PROGRAM, "debug", "text", "/dev/full"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stderr.count("cannot write /dev/full: ") == 1
    assert "No space left" in done.stderr
    assert done.stderr.splitlines()[-1] == "prism server: the end"
    assert done.stderr.count("Traceback") == 1, "that of the program alone"


def test_the_server_logs_into_the_directory_that_it_holds(tmp_path: Path) -> None:
    config, out = tmp_path / "c.toml", tmp_path / "out"
    config.write_text(TINY)
    words = ("-m", "prism", "server", config, "--bind", "127.0.0.1:0", "--out", out)
    with background(tmp_path / "err", *words, "--log-format", "json") as process:
        wait_for_line(out / "address", process)
        again = subprocess.run(
            [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=120
        )
        assert again.returncode == 1 and "is using" in again.stderr
        process.terminate()
        assert process.wait(60) == 0
    said = [line["message"] for line in jsonl(out / "logs" / "server.log")]
    assert said == [line["message"] for line in jsonl(tmp_path / "err")]
    assert any(line.startswith("listening on 127.0.0.1:") for line in said)
    assert not any("is using" in line for line in said)
