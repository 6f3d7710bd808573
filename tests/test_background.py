"""The writer: jobs in order, one flush for all that wait, and nothing after a failure."""

from __future__ import annotations

import asyncio
import threading

import pytest

from server.background import Background


class Disk:
    """Where the jobs write; holds the writer up until it is told to go on."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.durable: list[list[int]] = []
        self.at_work, self.go_on = threading.Event(), threading.Event()
        self.full = False

    def write(self, number: int) -> int:
        self.at_work.set()
        assert self.go_on.wait(20)
        self.written.append(number)
        return number

    def flush(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.durable.append(list(self.written))


def test_what_waits_is_flushed_together() -> None:
    async def main() -> None:
        disk = Disk()
        work = Background(disk.flush)
        first = work.write(disk.write, 0)
        await asyncio.to_thread(disk.at_work.wait, 20)
        # The writer is busy with the first while these come.
        later = [work.write(disk.write, number) for number in range(1, 100)]
        later[5].cancel()
        disk.go_on.set()
        assert await first == 0
        done = await asyncio.gather(*later, return_exceptions=True)
        assert [n for n in done if isinstance(n, int)] == [1, 2, 3, 4, 5, *range(7, 100)]
        assert disk.durable == [[0], list(range(100))], "whoever gave up, its job is done"
        await work.close()

    asyncio.run(main())


def test_after_a_failure_nothing_is_written() -> None:
    async def main() -> None:
        disk = Disk()
        disk.full = True
        disk.go_on.set()
        work = Background(disk.flush)
        batch = [work.write(disk.write, number) for number in range(3)]
        assert all(
            isinstance(e, OSError) for e in await asyncio.gather(*batch, return_exceptions=True)
        )
        disk.full = False
        with pytest.raises(OSError, match="No space"):
            await work.write(disk.write, 3)
        assert (disk.written, disk.durable) == ([0, 1, 2], [])
        assert work.stopping
        with pytest.raises(OSError, match="No space"):
            work.raise_failure()
        await work.close()

    asyncio.run(main())


def test_closing_waits_for_what_is_to_be_written() -> None:
    async def main() -> None:
        disk = Disk()
        disk.go_on.set()
        work = Background(disk.flush)
        for number in range(10):
            work.write(disk.write, number)
        await work.close()
        assert disk.durable[-1] == list(range(10))

    asyncio.run(main())
