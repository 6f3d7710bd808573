"""Places of clients that are started alike: a folder of folders, of which each client takes one.

A place is a folder with ca.pem, NAME.pem and NAME.key. The certificate says what the client is
called, and the client's state is kept beside it, so whoever takes the place is that client: a
container that is made anew goes on as the one that was there.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from client.messages import Security
from common.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """A place, until it is closed, or the process ends.

    Attributes:
        security: certificates and key.
        state: where the client's state is kept.
        lock: a file that is locked while it is open.
    """

    security: Security
    state: Path
    lock: IO[str]

    @classmethod
    def take(cls, folder: Path) -> Place:
        """The first that nobody has, in natural order: client-2 comes before client-10.

        Raises:
            ConfigError: there is none, all are taken, or the first free one cannot be used.
        """
        places = sorted(_places(folder), key=_natural)
        if not places:
            raise ConfigError(
                f"{folder} has no place: one is a folder in it with ca.pem, NAME.pem and NAME.key"
            )
        for place in places:
            lock = _locked(place / "lock")
            if lock is not None:
                try:
                    return cls(_security(place), place / "state", lock)
                except ConfigError:
                    lock.close()
                    raise
        raise ConfigError(
            f"all places in {folder} are taken, {len(places)} of them: make more, or stop a client"
        )

    def close(self) -> None:
        """Let another client have it."""
        self.lock.close()


def _security(place: Path) -> Security:
    key, *more = sorted(place.glob("*.key"))
    if more:
        raise ConfigError(f"{place} has more than one key: a place is for one client")
    security = Security(place / "ca.pem", key.with_suffix(".pem"), key)
    if security.proven_name() is None:
        raise ConfigError(f"{security.cert} names nobody: it is no client's certificate")
    return security


def _places(folder: Path) -> Iterator[Path]:
    try:
        for path in folder.iterdir():
            if path.is_dir() and any(path.glob("*.key")):
                yield path
    except OSError as error:
        raise ConfigError(f"cannot use --places {folder}: {error.strerror}") from error


def _natural(path: Path) -> list[str | int]:
    """Text and numbers in turn, so that only like is compared with like."""
    words = re.split(r"([0-9]+)", path.name)
    return [int(word) if i % 2 else word for i, word in enumerate(words)]


def _locked(path: Path) -> IO[str] | None:
    """A file with its lock, or None if another process has that."""
    try:
        lock = path.open("w")
    except OSError as error:
        raise ConfigError(f"cannot use --places: cannot write {path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except OSError as error:
        lock.close()
        raise ConfigError(f"cannot use --places: cannot lock {path}: {error.strerror}") from error
    return lock
