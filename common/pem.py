"""Certificates and keys from files, checked before gRPC has them.

It would fail later, say less, and look to a client like a network that is down.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from common.errors import ConfigError


def read_certificates(path: Path) -> bytes:
    """A PEM file of one or more certificates.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    return _certificates(path)[0]


def read_pair(cert: Path, key: Path) -> tuple[bytes, bytes]:
    """A PEM chain and the private key of its first certificate.

    Raises:
        ConfigError: one cannot be read or is something else, or they do not belong together.
    """
    chain, certificate = _certificates(cert)
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
    return chain, pem


def check_period(path: Path, now: float) -> str:
    """Whether the first certificate of a file is good now, in seconds since 1970.

    Returns:
        until when, for a person.

    Raises:
        ConfigError: it cannot be read, has expired, or is not valid yet.
    """
    certificate, moment = _certificates(path)[1], datetime.fromtimestamp(now, UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if moment < first:
        raise ConfigError(
            f"{path} is not valid before {first:%Y-%m-%d %H:%M} UTC; this clock says {moment:%H:%M}"
        )
    if moment > last:
        raise ConfigError(f"{path} has expired, at {last:%Y-%m-%d %H:%M} UTC")
    return f"good until {last:%Y-%m-%d}"


def _certificates(path: Path) -> tuple[bytes, x509.Certificate]:
    pem = _read(path)
    try:
        return pem, x509.load_pem_x509_certificates(pem)[0]
    except ValueError as error:
        raise ConfigError(f"{path} is not a PEM certificate") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
