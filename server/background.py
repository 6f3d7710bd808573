"""What an engine does its work with: a writer thread, tasks, and word of change and failure.

The writer takes all jobs that wait at once and flushes once for all of them (group commit): a
flush takes as long for a thousand updates as for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from common.errors import TransportError

Result = TypeVar("Result")
_Job = tuple[Callable[[], Any], asyncio.Future[Any]]


class Wakeups:
    """Events by name, so that a change wakes those alone whom it concerns."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}

    def of(self, name: str) -> asyncio.Event:
        """Is set at the next `wake` of a name."""
        return self._events.setdefault(name, asyncio.Event())

    def wake(self, *names: str) -> None:
        """Wake those who wait under these names."""
        for name in names:
            if (event := self._events.pop(name, None)) is not None:
                event.set()

    def wake_all(self) -> None:
        """Wake everyone."""
        self.wake(*self._events)


class Background:
    """One writer thread and any number of tasks; the first failure of any stops the rest.

    Args:
        flush: makes what the writer's jobs wrote durable; called in the writer thread.

    Attributes:
        stopping: whether those who wait are to give up.
        changed: set at the next change, when another takes its place; for the engine itself.
        calls: that wait for something, by the name of their client.
    """

    def __init__(self, flush: Callable[[], None]) -> None:
        self.stopping = False
        self.changed = asyncio.Event()
        self.calls = Wakeups()
        self._flush = flush
        self._writer = ThreadPoolExecutor(1, "writer")
        self._waiting: list[_Job] = []
        self._writing: asyncio.Task[None] | None = None
        self._broken: Exception | None = None
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def write(self, job: Callable[..., Result], *args: object) -> asyncio.Future[Result]:
        """Run a job in the writer thread, after all earlier ones, and flush.

        It runs whatever becomes of the caller, unless an earlier one failed: then it fails too.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._note_failure)
        self._waiting.append((partial(job, *args), future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())
        return future

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine that `close` waits for."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._note_failure)
        return task

    def notify(self) -> None:
        """Wake those who wait for any change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def stop(self) -> None:
        """Tell everyone who waits to give up."""
        self.stopping = True
        self.calls.wake_all()
        self.notify()

    def check_running(self) -> None:
        """Raises TransportError when stopping: there may be an answer later."""
        if self.stopping:
            raise TransportError("the server is stopping; try again later")

    def raise_failure(self) -> None:
        """Raises what the first job or task that failed did."""
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Wait for all tasks, then for the writer."""
        self.stop()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writing is not None:
            await self._writing
        await asyncio.to_thread(self._writer.shutdown)

    async def _write_all(self) -> None:
        """Run all that waits, and what comes meanwhile, batch by batch."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            jobs = [job for job, _ in batch]
            try:
                results = await loop.run_in_executor(self._writer, self._run, jobs)
            except Exception as error:
                self._broken = error
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        self._writing = None

    def _run(self, jobs: Iterable[Callable[[], Any]]) -> list[Any]:
        # What follows a write that failed must not be on the disk without it.
        if self._broken is not None:
            raise self._broken
        results = [job() for job in jobs]
        self._flush()
        return results

    def _note_failure(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._failure = self._failure or error
            self.stop()


async def durable(written: asyncio.Future[None]) -> None:
    """Wait for a write; the server stops if it fails, and may be back with more room."""
    try:
        await written
    except OSError as error:
        raise TransportError(f"the server cannot write its journal: {error.strerror}") from error


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most so long."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), None if seconds == math.inf else max(0.0, seconds))
