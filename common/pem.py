"""Certificates and keys from files, checked before gRPC has them.

It would fail later, say less, and look to a client like a network that is down.
"""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigError

SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
MALFORMED: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises of a certificate, a request or a key; of some parts when asked."""
_KINDS: Final = {SERVER: "server", CLIENT: "client"}


def read_authorities(path: Path) -> bytes:
    """A PEM file of the certificates that may have signed the other side's.

    Raises:
        ConfigError: it cannot be read, is something else, or none of them is good now.
    """
    pem, certificates = load_certificates(path)
    first = certificates[0]
    if all(_constrained_to_leaf(certificate) for certificate in certificates):
        raise ConfigError(
            f"{path} is the certificate of {common_name(first)}, not of the authority that "
            f"signed it: {issuer_name(first)}"
        )
    if not any(_is_valid(certificate) for certificate in certificates):
        check_validity(path, first)
    return pem


def read_pair(cert: Path, key: Path, purpose: x509.ObjectIdentifier) -> tuple[bytes, bytes]:
    """A PEM chain and the private key of its first certificate.

    Args:
        cert: file of the chain.
        key: file of the key.
        purpose: `SERVER` or `CLIENT`.

    Raises:
        ConfigError: one cannot be read or is something else, they do not belong together, the
            certificate is not good now or is for something else, or others may read the key.
    """
    chain, (certificate, *_) = load_certificates(cert)
    pem = _read(key)
    try:
        public = serialization.load_pem_private_key(pem, password=None).public_key()
        belong = public == certificate.public_key()
    except UnsupportedAlgorithm as error:
        raise ConfigError(f"{key} or {cert} is of a kind that is not supported") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key} is not a PEM private key without a password") from error
    if not belong:
        raise ConfigError(f"{key} is not the key of {cert}")
    if readable_by_all(key):
        raise ConfigError(f"everybody on this machine can read {key}: run `chmod 600 {key}`")
    check_validity(cert, certificate)
    if (purposes := purposes_of(certificate)) and purpose not in purposes:
        raise ConfigError(f"{cert} is not a {_KINDS[purpose]}'s certificate: it is made for others")
    return chain, pem


def load_certificates(path: Path) -> tuple[bytes, list[x509.Certificate]]:
    """A PEM file, and the one or more certificates in it.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    pem = _read(path)
    try:
        return pem, [*map(read_through, x509.load_pem_x509_certificates(pem))]
    except MALFORMED as error:
        raise ConfigError(f"{path} is not a PEM certificate") from error


def read_through(certificate: x509.Certificate) -> x509.Certificate:
    """The same certificate, all parts of which that are asked for here can be read.

    Raises:
        MALFORMED: they cannot.
    """
    _ = certificate.subject, certificate.issuer, certificate.extensions
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return certificate


def check_period(path: Path, now: float) -> str:
    """Whether the first certificate of a file is good now, in seconds since 1970.

    Returns:
        until when, for a person.

    Raises:
        ConfigError: it cannot be read, has expired, or is not valid yet.
    """
    _, (certificate, *_) = load_certificates(path)
    check_validity(path, certificate, datetime.fromtimestamp(now, UTC))
    return f"good until {certificate.not_valid_after_utc:%Y-%m-%d}"


def check_validity(
    where: object, certificate: x509.Certificate, now: datetime | None = None
) -> None:
    """Refuse a certificate that the clock of this machine says is not good now.

    Args:
        where: what to call it.
        certificate: that is looked at.
        now: what the clock says; by default that of this machine is read.

    Raises:
        ConfigError: it has expired, or is not valid yet.
    """
    now = now or datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        raise ConfigError(
            f"{where} has expired, on {_moment(certificate.not_valid_after_utc)}, and the clock "
            f"here says {_moment(now)}: renew it, or set the clock"
        )
    if certificate.not_valid_before_utc > now:
        raise ConfigError(
            f"{where} is not valid before {_moment(certificate.not_valid_before_utc)}, and the "
            f"clock here says {_moment(now)}: set the clock"
        )


def readable_by_all(path: Path) -> bool:
    """Whether everybody on this machine may read a file."""
    return bool(path.stat().st_mode & stat.S_IROTH)


def purposes_of(certificate: x509.Certificate) -> frozenset[x509.ObjectIdentifier]:
    """What a certificate may be used for; nothing if it does not say."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(extension.value)


def common_name(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Whom a certificate is for, by its common name; empty if it has none."""
    return _common_name(certificate.subject)


def issuer_name(certificate: x509.Certificate) -> str:
    """Who signed a certificate, by its common name; empty if it has none."""
    return _common_name(certificate.issuer)


def host_names(
    certificate: x509.Certificate | x509.CertificateSigningRequest,
) -> tuple[str, ...]:
    """DNS names and IP addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _common_name(name: x509.Name) -> str:
    values = [attribute.value for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return " ".join(str(values[0]).split()) if values else ""


def _constrained_to_leaf(certificate: x509.Certificate) -> bool:
    """Whether a certificate says that it is no authority's, and is not its own either."""
    if certificate.issuer == certificate.subject:
        return False
    try:
        extension = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return not extension.value.ca


def _is_valid(certificate: x509.Certificate) -> bool:
    now = datetime.now(UTC)
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
