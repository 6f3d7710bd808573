"""Work on the latest item only, and what a run exports by it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest
from support import jsonl, serve_finished, tiny_config, whole_run

from common.model.export import load_model
from server.latest import LatestWorker


class Held:
    """A worker whose first item waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.done: list[int] = []
        self.failures: list[Exception] = []
        self.worker = LatestWorker("test", self.work, self.failures.append)

    def work(self, item: int) -> None:
        self.begun.set()
        assert self.go_on.wait(30)
        if item < 0:
            raise ValueError(item)
        self.done.append(item)


def test_only_the_latest_of_those_that_wait_has_its_turn() -> None:
    held = Held()
    held.worker.submit(1)
    assert held.begun.wait(30)
    for item in (2, 3, 4):
        held.worker.submit(item)
    held.go_on.set()
    held.worker.close(finish=True)
    assert held.done == [1, 4]


def test_after_a_failure_the_next_has_its_turn() -> None:
    held = Held()
    held.worker.submit(-1)
    assert held.begun.wait(30)
    held.worker.submit(2)
    held.go_on.set()
    held.worker.close(finish=True)
    assert [str(error) for error in held.failures] == ["-1"]
    assert held.done == [2]


def test_closed_without_finishing_it_gives_up() -> None:
    begun = threading.Event()
    worked: list[int] = []
    failures: list[Exception] = []

    def work(item: int) -> None:
        worked.append(item)
        begun.set()
        while True:
            worker.check()

    worker = LatestWorker("test", work, failures.append)
    worker.submit(1)
    assert begun.wait(30)
    worker.submit(2)
    worker.close(finish=False)
    assert (worked, failures) == ([1], [])


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_it_gives_way_to_other_threads() -> None:
    found = []

    def work(_: None) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    worker: LatestWorker[None] = LatestWorker("test", work, pytest.fail)
    worker.submit(None)
    worker.close(finish=True)
    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert found == [max(10, here)]


def test_rounds_go_on_where_no_picture_can_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(rounds=2, output={"sample_every": 1})
    (tmp_path / "samples.png").mkdir()
    asyncio.run(whole_run(config, tmp_path))
    assert [line["round"] for line in jsonl(tmp_path / "metrics.jsonl")] == [0, 1]
    assert "could not draw samples or export the model" in caplog.text
    assert not (tmp_path / "model.prism").exists()
    (tmp_path / "samples.png").rmdir()
    asyncio.run(serve_finished(config, tmp_path))
    assert load_model(tmp_path / "model.prism").round == 2
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
