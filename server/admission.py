"""Who may take part: names on a list, and names that a token proves.

Both files are read again when they change. One that cannot be used then leaves all as it was, and
is told: an editor that saves half a file must not throw everybody out, or let anybody in.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from common.errors import ConfigError, NotAdmitted
from common.files import stamp
from common.tokens import name_of, read_lines, read_proofs
from server.members import NAME_LENGTH

log = logging.getLogger(__name__)


class Admission:
    """The lists of one server; without files, everybody is admitted.

    Args:
        allow: one name a line.
        tokens: one name a line and the digest of its token.

    Raises:
        ConfigError: a file cannot be used.
    """

    def __init__(self, allow: Path | None = None, tokens: Path | None = None) -> None:
        self._allow_file, self._tokens_file = allow, tokens
        self._stamps = self._last_seen = self._seen()
        self._allowed: frozenset[str] | None = None
        self._proofs: dict[str, str] | None = None
        self._read()

    @property
    def asks_tokens(self) -> bool:
        """Whether a token must prove each name."""
        return self._proofs is not None

    def refresh(self) -> None:
        """Read the files again if they have changed, and are as they were at the last look."""
        seen, before = self._seen(), self._last_seen
        self._last_seen = seen
        # One that is still being written looks whole whenever it ends with a line.
        if seen == self._stamps or seen != before:
            return
        self._stamps = seen
        try:
            self._read()
        except ConfigError as error:
            log.warning("the list has changed and cannot be used; the old one holds: %s", error)
        else:
            log.info("the list of clients has changed and was read again")

    def admits(self, name: str) -> bool:
        """Whether a name may take part, provided that it is the caller's."""
        if self._allowed is not None and name not in self._allowed:
            return False
        return self._proofs is None or name in self._proofs

    def check(self, name: str) -> None:
        """Refuse a name that may not take part.

        Raises:
            NotAdmitted: it may not.
        """
        if not self.admits(name):
            raise NotAdmitted(f"{name} may not take part in this run: ask the server's operator")

    def check_token(self, name: str, secret: str) -> None:
        """Refuse a name that the token does not prove, where tokens are asked for.

        Raises:
            NotAdmitted: it does not.
        """
        if self._proofs is None:
            return
        if not secret:
            raise NotAdmitted("this server asks clients for a token: give --token-file")
        if name_of(self._proofs, secret) != name:
            raise NotAdmitted(f"the token is not that of {name}, or no longer: ask for a new one")

    def proves(self, secret: str) -> bool:
        """Whether a token is that of a name that may take part."""
        name = name_of(self._proofs or {}, secret) if secret else None
        return name is not None and self.admits(name)

    def _read(self) -> None:
        allowed = None if self._allow_file is None else _names(self._allow_file)
        proofs = None if self._tokens_file is None else read_proofs(self._tokens_file)
        self._allowed, self._proofs = allowed, proofs

    def _seen(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(stamp(path) for path in (self._allow_file, self._tokens_file) if path)


EVERYBODY: Final = Admission()
"""Admits all names, and asks for no tokens."""


def _names(path: Path) -> frozenset[str]:
    names = set()
    for number, name in read_lines(path):
        if len(name) > NAME_LENGTH or not name.isprintable():
            raise ConfigError(
                f"{path}, line {number}: a name has 1 to {NAME_LENGTH} printable characters"
            )
        names.add(name)
    if not names:
        raise ConfigError(f"{path} names nobody: write one name a line")
    return frozenset(names)
