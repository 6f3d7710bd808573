"""Ctrl-C ends `prism run` with the line that resumes it, once, at whatever moment it comes."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_end_to_end import TIMEOUT, TINY, processes_of, wait_for_line


@contextmanager
def run_in_a_terminal(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[bytes]]]:
    """A long run as a person starts it, and what it writes to the terminal."""
    (folder / "tiny.toml").write_text(TINY.replace("rounds = 3", "rounds = 100000"))
    ours, its = pty.openpty()
    words = ("-m", "prism", "run", folder / "tiny.toml", "--out", folder / "out")
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stdin=its, stdout=its, stderr=its
    )
    os.close(its)
    said: list[bytes] = []

    def read() -> None:
        # A terminal whose other side is closed answers with an error.
        try:
            while data := os.read(ours, 65536):
                said.append(data)
        except OSError:
            pass

    reading = threading.Thread(target=read)
    reading.start()
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()
        reading.join(TIMEOUT)
        os.close(ours)


def wait_until_it_listens(process: subprocess.Popen[bytes]) -> None:
    """Until the command has begun: Python itself does not handle SIGHUP."""
    status = Path(f"/proc/{process.pid}/status")
    while True:
        caught = next(line for line in status.read_text().splitlines() if "SigCgt" in line)
        if int(caught.split()[1], 16) & 1 << (signal.SIGHUP - 1):
            return
        assert process.poll() is None
        os.sched_yield()


def check(said: list[bytes], code: int, out: Path) -> None:
    text = b"".join(said).decode()
    assert code == 130, text
    assert "Traceback" not in text and "Error" not in text, text
    assert text.count("stopped; to go on: ") == 1, text
    assert text.splitlines()[-1].endswith(f"-m prism run {out.parent}/tiny.toml --out {out}"), text


def test_while_it_is_being_loaded(tmp_path: Path) -> None:
    with run_in_a_terminal(tmp_path) as (process, said):
        wait_until_it_listens(process)
        process.send_signal(signal.SIGINT)
        code = process.wait(TIMEOUT)
    check(said, code, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_twice_while_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with run_in_a_terminal(tmp_path) as (process, said):
        wait_for_line(out / "metrics.jsonl", process)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
        code = process.wait(TIMEOUT)
    check(said, code, out)
    deadline = time.monotonic() + TIMEOUT
    while processes_of(out):
        assert time.monotonic() < deadline, "they outlive it"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_at_random_instants(tmp_path: Path, seed: int) -> None:
    out, draw = tmp_path / "out", random.Random(seed)
    with run_in_a_terminal(tmp_path) as (process, said):
        wait_until_it_listens(process)
        time.sleep(draw.uniform(0, 20))
        process.send_signal(signal.SIGINT)
        code = process.wait(TIMEOUT)
    check(said, code, out)
    assert not processes_of(out)
