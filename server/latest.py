"""Work that only the latest of several is worth: pictures, models, evaluations of a state."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Generic, TypeVar

import torch

from common.errors import PrismError
from common.files import failure_of

Item = TypeVar("Item")

_NICE: Final = 10


class GivenUpError(Exception):
    """Raised in the work of a worker that was closed without finishing."""


class LatestWorker(Generic[Item]):
    """One thread of low priority that works on the latest item it was given.

    An item that another follows before its turn is never worked on. An item whose turn has come
    is finished first.

    Args:
        name: of the thread.
        work: called in the thread with each item. What takes long calls `check` now and then.
        failed: told, in the thread, of what `work` raised. The next item has its turn all the same.
    """

    def __init__(
        self, name: str, work: Callable[[Item], None], failed: Callable[[Exception], None]
    ) -> None:
        self._work = work
        self._failed = failed
        self._waiting: deque[Item] = deque(maxlen=1)
        self._given_up = False
        self._thread = ThreadPoolExecutor(1, name, initializer=lower_priority)

    def submit(self, item: Item) -> None:
        """Work on an item next, in place of the one that waits for its turn."""
        self._waiting.append(item)
        self._thread.submit(self._next)

    def check(self) -> None:
        """Give up here if nobody waits for the result; for `work` to call.

        Raises:
            GivenUpError: the worker was closed without finishing.
        """
        if self._given_up:
            raise GivenUpError

    def close(self, *, finish: bool) -> None:
        """End the thread, and wait until it has ended.

        Args:
            finish: whether what is under way and what waits for its turn are still done.
        """
        self._given_up = not finish
        self._thread.shutdown(wait=True)

    def _next(self) -> None:
        # There are as many calls as items, and the first takes the only one that is left.
        if not self._waiting or self._given_up:
            return
        try:
            self._work(self._waiting.popleft())
        except GivenUpError:
            pass
        except Exception as error:
            self._failed(error)


def log_failure(log: logging.Logger, what: str, error: BaseException) -> None:
    """Say in one line what could not be done and why; with a traceback where that is a bug."""
    bug = None if isinstance(error, (OSError, PrismError)) else error
    log.error("%s: %s", what, failure_of(error), exc_info=bug)


def lower_priority() -> None:
    """Make the calling thread, and those it starts, give way to all others."""
    # torch's threads would spin beside the clients' training.
    torch.set_num_threads(1)
    # On Linux the priority is a thread's own, and the threads that it starts inherit it.
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # A process that runs at a lower priority yet may not raise it.
        nice = max(_NICE, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, nice)
