"""All the certificates of a federation on one machine, in the folders of who uses them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import ConfigError
from common.files import write_atomically
from common.pem import CLIENT, SERVER, host_names, load_certificates, read_pair
from prism.certificates import Authority, Subject, write_pair

RENEWED: Final = timedelta(days=30)
"""How long before its end a certificate is made anew."""


@dataclass(frozen=True)
class _Pair:
    """A certificate and its key, as `stem`.pem and `stem`.key of a folder."""

    folder: Path
    stem: str
    subject: Subject

    def is_good(self, authority: Authority) -> bool:
        """Whether it is there, and does for another while."""
        path = self.folder / f"{self.stem}.pem"
        purpose = SERVER if self.subject.hosts else CLIENT
        try:
            read_pair(path, path.with_suffix(".key"), purpose)
            _, (certificate, *_) = load_certificates(path)
            certificate.verify_directly_issued_by(authority.certificate)
        except (ConfigError, InvalidSignature, ValueError, TypeError):
            return False
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        ends = min(RENEWED, authority.certificate.not_valid_after_utc - datetime.now(UTC))
        return set(host_names(certificate)) == set(self.subject.hosts) and left >= ends

    def make(self, authority: Authority, days: int) -> Path:
        """Make it, in place of what is there; the path of the certificate."""
        for suffix in (".pem", ".key"):
            (self.folder / self.stem).with_suffix(suffix).unlink(missing_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        signed = authority.sign(self.subject, key.public_key(), days)
        return write_pair(self.folder, self.stem, signed, key)


def furnish(
    authority: Path, server: Path, hosts: Sequence[str], places: Path, clients: int, days: int
) -> Iterator[Path]:
    """Make what is missing or ends soon; what is good stays as it is.

    Args:
        authority: folder of the authority, which is made if there is none.
        server: folder for ca.pem, the server's certificate and key as server.*, and a client's
            as health.*, to ask for its health with.
        hosts: DNS names and IP addresses that the server is reached by.
        places: folder for client-1, client-2 and so on, each with ca.pem, certificate and key.
        clients: how many of these.
        days: how long certificates are valid.

    Yields:
        the path of each certificate that was made.

    Raises:
        ConfigError: a name cannot be had, or something cannot be read or written.
    """
    pairs = [
        _Pair(server, "server", Subject.server(hosts)),
        _Pair(server, "health", Subject.client("health")),
    ]
    names = [f"client-{number}" for number in range(1, clients + 1)]
    pairs += [_Pair(places / name, name, Subject.client(name)) for name in names]
    try:
        if not (authority / "ca.pem").exists():
            yield Authority.make(authority, f"prism authority {secrets.token_hex(4)}", 3650)
        signing = Authority.read(authority)
        ca = (authority / "ca.pem").read_bytes()
        for pair in pairs:
            if not pair.is_good(signing):
                yield pair.make(signing, days)
            given = pair.folder / "ca.pem"
            if not given.exists() or given.read_bytes() != ca:
                write_atomically(given, ca)
    except OSError as error:
        raise ConfigError(f"cannot use {error.filename}: {error.strerror}") from error
