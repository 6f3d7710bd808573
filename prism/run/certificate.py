"""A certificate for loopback, for federations that are whole on one machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.errors import ConfigError
from common.pem import SERVER, load_certificates, read_pair
from prism.certificates import write_pair

_VALID = timedelta(days=365)
_LEFT = timedelta(days=7)
"""What a certificate must still be good for to be used again."""


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key; their paths.

    The certificate is its own authority, so it is also what clients are to trust. It is good
    for a year and for nothing but this machine. One that is there and still good stays, since
    clients may have been told to trust it.
    """
    paths = folder / "certificate.pem", folder / "certificate.key"
    if _good(*paths):
        return paths
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "prism on this machine")])
    now = datetime.now(UTC)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    serial = x509.random_serial_number()
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), serial, now - _VALID, now + _VALID)
        .add_extension(loopback, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    for old in paths:
        old.unlink(missing_ok=True)
    write_pair(folder, "certificate", certificate, key)
    return paths


def _good(certificate: Path, key: Path) -> bool:
    try:
        read_pair(certificate, key, SERVER)
    except ConfigError:
        return False
    _, (first, *_) = load_certificates(certificate)
    return first.not_valid_after_utc > datetime.now(UTC) + _LEFT
