"""Certificates and keys from files, checked before gRPC has them.

It would fail later, say less, and look to a client like a network that is down.
"""

from __future__ import annotations

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
