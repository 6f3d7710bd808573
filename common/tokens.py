"""Tokens: how clients without certificates prove their names.

A client's file is one line, its name and its token. The server's has a line for each client, the
name and the SHA-256 of the token, so that whoever reads it can prove nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from common.errors import ConfigError
from common.pem import readable_by_all

TOKEN_BYTES: Final = 32
_SHORTEST: Final = 32
"""Characters of a token: shorter ones could be guessed."""


class Token(NamedTuple):
    """A name, and what proves it."""

    name: str
    secret: str

    @classmethod
    def make(cls, name: str) -> Token:
        """A new one, from the operating system's entropy."""
        return cls(name, secrets.token_urlsafe(TOKEN_BYTES))

    @classmethod
    def read(cls, path: Path) -> Token:
        """The one of a client's file.

        Raises:
            ConfigError: it cannot be read, is something else, or everybody can read it.
        """
        lines = list(read_lines(path))
        if readable_by_all(path):
            raise ConfigError(f"everybody on this machine can read {path}: run `chmod 600 {path}`")
        name, _, secret = lines[0][1].rpartition(" ") if len(lines) == 1 else ("", "", "")
        if not name or len(secret) < _SHORTEST or not secret.isascii():
            raise ConfigError(f"{path} is not a client's token file: one line, NAME TOKEN")
        return cls(name.strip(), secret)

    @property
    def line(self) -> str:
        """The line of the client's file."""
        return f"{self.name} {self.secret}\n"

    @property
    def proof(self) -> str:
        """The line of the server's file."""
        return f"{self.name} {digest(self.secret)}\n"


def digest(secret: str) -> str:
    """What the server keeps of a token, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def read_proofs(path: Path) -> dict[str, str]:
    """Digests by name, from the server's file.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    proofs: dict[str, str] = {}
    for number, line in read_lines(path):
        name, _, kept = line.rpartition(" ")
        if not name or len(kept) != 64 or not set(kept) <= set("0123456789abcdef"):
            raise ConfigError(
                f"{path}, line {number}: a line is NAME and a SHA-256, as `prism certs token` "
                "appends it"
            )
        proofs[name.strip()] = kept
    return proofs


def name_of(proofs: dict[str, str], secret: str) -> str | None:
    """Whose token it is, in a time that tells nothing about the others."""
    shown, found = digest(secret), None
    for name, kept in proofs.items():
        if hmac.compare_digest(shown, kept):
            found = name
    return found


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file with their numbers, without comments (#) and empty ones.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8") from error
    for number, line in enumerate(text.splitlines(), 1):
        written = "" if line.lstrip().startswith("#") else line.partition(" #")[0].strip()
        if written:
            yield number, written
