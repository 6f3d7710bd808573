"""The server's certificate files: read at the start, and again when they change on the disk."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from common.errors import ConfigError
from common.files import stamp
from common.pem import SERVER, load_certificates, read_authorities, read_pair

WARN_BEFORE: Final = timedelta(days=14)
WARN_EVERY: Final = timedelta(days=1)

log = logging.getLogger(__name__)


class Pems(NamedTuple):
    """What gRPC is given: a private key, its chain, and who may have signed clients' certificates.

    `roots` is None where clients show none.
    """

    key: bytes
    chain: bytes
    roots: bytes | None


class CertificateFiles:
    """Files of a server's certificate, its key, and the authority of its clients.

    Attributes:
        mutual: whether clients must show a certificate.
        pems: the contents that were last found good.

    Raises:
        ConfigError: they cannot be used.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self.mutual = client_ca is not None
        self._stamps = self._seen()
        self.pems = self._read()
        self._reminded = datetime.min.replace(tzinfo=UTC)

    @classmethod
    def of(
        cls, cert: Path | None, key: Path | None, client_ca: Path | None
    ) -> CertificateFiles | None:
        """From options that belong together; None for plain text. Raises ConfigError."""
        if cert is None and key is None:
            if client_ca is not None:
                raise ConfigError("--client-ca needs --tls-cert and --tls-key")
            return None
        if cert is None or key is None:
            raise ConfigError("--tls-cert and --tls-key belong together")
        return cls(cert, key, client_ca)

    def refreshed(self) -> Pems | None:
        """The contents, if the files are others than at the last call and can be used."""
        if (seen := self._seen()) == self._stamps:
            return None
        self._stamps = seen
        try:
            self.pems = self._read()
        except ConfigError as error:
            log.warning("the certificates have changed and cannot be used: %s", error)
            return None
        log.info("the certificates have changed and were read again")
        return self.pems

    def remind(self, now: datetime) -> None:
        """Warn once a day of a certificate that expires soon, or has."""
        if now - self._reminded < WARN_EVERY:
            return
        self._reminded = now
        for path in (self._cert, self._client_ca):
            if path is None:
                continue
            try:
                left = load_certificates(path)[1][0].not_valid_after_utc - now
            except ConfigError as error:
                log.warning("%s", error)
                continue
            if left < timedelta(0):
                log.error("%s has expired: nobody can connect anew until it is renewed", path)
            elif left < WARN_BEFORE:
                log.warning("%s expires in %.1f days: renew it", path, left / timedelta(days=1))

    def _read(self) -> Pems:
        chain, key = read_pair(self._cert, self._key, SERVER)
        return Pems(key, chain, read_authorities(self._client_ca) if self._client_ca else None)

    def _seen(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(stamp(path) for path in (self._cert, self._key, self._client_ca) if path)
