"""Certificates made on the spot: by the product's own authority, and by one that makes bad ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOUR = timedelta(hours=1)


class Authority:
    """Signs certificates, and is trusted by who reads `ca`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self._pem(self._sign(self._name, self._key.public_key(), ca=True)))

    def issue(
        self,
        name: str,
        *also: str,
        since: timedelta = -HOUR,
        until: timedelta = HOUR,
        address: str = "127.0.0.1",
    ) -> tuple[Path, Path]:
        """Paths of a certificate for the names and an address, and of its key.

        It is valid from `since` to `until`, both from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names: list[x509.GeneralName] = [x509.DNSName(other) for other in also]
        names.append(x509.IPAddress(ip_address(address)))
        certificate = self._sign(
            subject, key.public_key(), ca=False, also=names, since=since, until=until
        )
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(self._pem(certificate))
        paths[1].touch(mode=0o600)
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return paths

    def channel(self, address: str, *own: Path) -> grpc.aio.Channel:
        """A channel that trusts this authority and shows the given certificate and key."""
        chain, key = (path.read_bytes() for path in own) if own else (None, None)
        credentials = grpc.ssl_channel_credentials(self.ca.read_bytes(), key, chain)
        return grpc.aio.secure_channel(address, credentials)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        ca: bool,
        also: list[x509.GeneralName] | None = None,
        since: timedelta = -HOUR,
        until: timedelta = HOUR,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + since)
            .not_valid_after(now + until)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if also:
            builder = builder.add_extension(x509.SubjectAlternativeName(also), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    @staticmethod
    def _pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)
