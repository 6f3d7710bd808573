"""The processes of `benchmarks.scale`: a server that is watched, and the clients it serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

START_SECONDS: Final = 60.0
SAMPLE_SECONDS: Final = 0.1
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """One look at a process.

    Attributes:
        at: seconds of the clock.
        cpu: seconds that it has computed.
        resident: bytes of memory.
        rounds: that it has closed.
    """

    at: float
    cpu: float
    resident: int
    rounds: int


@dataclass
class Served:
    """A server process, and what was seen of it.

    Attributes:
        address: HOST:PORT.
        samples: in order of time, from when it was ready.
        counts_rounds: whether it has any.
    """

    address: str
    counts_rounds: bool
    samples: list[Sample] = field(default_factory=list)


@contextmanager
def serving(
    words: Sequence[str | Path], address: Path, metrics: Path | None = None
) -> Iterator[Served]:
    """A Python process that writes its address to a file; watched, and ended with the block.

    Args:
        words: what follows the interpreter.
        address: the file.
        metrics: where it writes a line for each round.

    Raises:
        RuntimeError: it ended, or had no address in time.
    """
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    # Read all along, or the process would stop at a full pipe.
    said: list[bytes] = []
    assert process.stderr is not None
    reader = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
    reader.start()
    ended = threading.Event()
    watcher: threading.Thread | None = None
    try:
        until = time.monotonic() + START_SECONDS
        while not (address.exists() and address.read_text().endswith("\n")):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the server did not start: " + b"".join(said).decode())
            time.sleep(0.05)
        served = Served(address.read_text().strip(), metrics is not None)
        served.samples.append(_sample(process.pid, metrics))

        def watch() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                try:
                    served.samples.append(_sample(process.pid, metrics))
                except (OSError, IndexError):
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        yield served
    finally:
        ended.set()
        if watcher is not None:
            watcher.join()
        process.terminate()
        process.wait()
        reader.join()
        process.stderr.close()


def drive(
    mode: str, served: Served, config: Path, clients: int, rounds: int, processes: int
) -> dict[str, list[float]]:
    """Run the clients in some processes to their end; seconds of their calls, by kind.

    Raises:
        RuntimeError: one of the processes failed.
    """
    bounds = [clients * i // processes for i in range(processes + 1)]
    running = []
    for first, last in pairwise(bounds):
        numbers = map(str, (first, last - first, rounds))
        words = ("-m", "benchmarks.scale.load", mode, served.address, str(config), *numbers)
        running.append(subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE))
    seconds: dict[str, list[float]] = defaultdict(list)
    try:
        for process in running:
            written, _ = process.communicate()
            if process.returncode:
                raise RuntimeError("a process of clients failed; it said why above")
            for kind, values in json.loads(written).items():
                seconds[kind] += values
    finally:
        for process in running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    return dict(seconds)


def _sample(pid: int, metrics: Path | None) -> Sample:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / _TICKS
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    rounds = metrics.read_bytes().count(b"\n") if metrics is not None and metrics.exists() else 0
    return Sample(time.monotonic(), cpu, resident, rounds)
