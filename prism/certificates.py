"""A private authority: its certificate, those that it signs, and requests to sign.

Keys are on the curve P-256. A file that holds one can be read by its owner alone from the moment
that it exists, and no file that is there is ever written over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.errors import ConfigError
from common.pem import (
    CLIENT,
    MALFORMED,
    SERVER,
    check_validity,
    common_name,
    host_names,
    load_certificates,
)

CLOCKS_DIFFER: Final = timedelta(hours=1)
"""How long before now a certificate is valid: other machines' clocks are not this one's."""
LONGEST_NAME: Final = 64
"""Characters of a common name, and of a client's name."""
_DNS_NAME: Final = re.compile(r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.?)+")
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True)
class Subject:
    """Whom a certificate is for: the common name, and of a server what it is reached by."""

    name: str
    hosts: tuple[str, ...] = ()

    @classmethod
    def client(cls, name: str) -> Subject:
        """A client of this name; raises ConfigError if none can have it."""
        if not (1 <= len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip()):
            raise ConfigError(
                f"a client's name has 1 to {LONGEST_NAME} printable characters, none of them a "
                f"space at its ends: {name!r}"
            )
        return cls(name)

    @classmethod
    def server(cls, hosts: Sequence[str]) -> Subject:
        """A server reached by these DNS names and IP addresses; raises ConfigError."""
        for host in hosts:
            _host(host)
        return cls(hosts[0][:LONGEST_NAME], tuple(hosts))

    @property
    def stem(self) -> str:
        """What the files are called."""
        return re.sub(r"[^\w.-]", "_", self.name.replace("*", "any")).lstrip(".-") or "_"


class Authority:
    """Signs certificates; what it has signed is trusted by who was given its certificate."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def make(cls, folder: Path, name: str, days: int) -> Path:
        """Make one in a folder, as ca.pem and ca.key; the path of its certificate.

        Raises:
            ConfigError: the folder has one, or cannot be written.
        """
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, Subject.client(name).name)])
        key = ec.generate_private_key(ec.SECP256R1())
        usage = _usage(signs_certificates=True)
        certificate = (
            _builder(subject, subject, key.public_key(), datetime.now(UTC) + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return write_pair(folder, "ca", certificate, key)

    @classmethod
    def read(cls, folder: Path) -> Authority:
        """The one of a folder.

        Raises:
            ConfigError: there is none, it is damaged, or it is not good now.
        """
        path, key_path = folder / "ca.pem", folder / "ca.key"
        if not path.exists():
            raise ConfigError(f"{folder} has no authority: run `prism certs init --dir {folder}`")
        _, (certificate, *_) = load_certificates(path)
        check_validity(path, certificate)
        try:
            key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        except OSError as error:
            raise ConfigError(f"cannot read {key_path}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{key_path} is not a PEM private key") from error
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or key.public_key() != certificate.public_key()
        ):
            raise ConfigError(f"{key_path} is not the key of {path}")
        return cls(certificate, key)

    def sign(self, subject: Subject, key: ec.EllipticCurvePublicKey, days: int) -> x509.Certificate:
        """A certificate, of a server if the subject has hosts, else of a client.

        It ends when the authority's own does, if that is sooner.
        """
        until = min(datetime.now(UTC) + timedelta(days=days), self.certificate.not_valid_after_utc)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject.name)])
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(name, self.certificate.subject, key, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(authority_key, critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([SERVER if subject.hosts else CLIENT]), critical=False
            )
        )
        if subject.hosts:
            hosts = x509.SubjectAlternativeName([_host(host) for host in subject.hosts])
            builder = builder.add_extension(hosts, critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, folder: Path, subject: Subject, days: int) -> Path:
        """Make a key and sign for it, the short way; the path of the certificate.

        Raises:
            ConfigError: the files are there, or cannot be written.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        return write_pair(folder, subject.stem, self.sign(subject, key.public_key(), days), key)


def request(folder: Path, subject: Subject) -> Path:
    """Make a key, which stays here, and a request to sign; the path of the request.

    Raises:
        ConfigError: the files are there, or cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject.name)])
    builder = x509.CertificateSigningRequestBuilder(name)
    if subject.hosts:
        hosts = x509.SubjectAlternativeName([_host(host) for host in subject.hosts])
        builder = builder.add_extension(hosts, critical=False)
    signed = builder.sign(key, hashes.SHA256())
    path = folder / f"{subject.stem}.csr"
    create(folder / f"{subject.stem}.key", _key_pem(key), 0o600)
    create(path, signed.public_bytes(_PEM), 0o644)
    return path


def read_request(path: Path) -> tuple[Subject, ec.EllipticCurvePublicKey]:
    """Whom a request is for, and the key that it proves to have.

    Raises:
        ConfigError: it cannot be read, is something else, or does not prove it.
    """
    try:
        asked = x509.load_pem_x509_csr(path.read_bytes())
        key, hosts, name = asked.public_key(), host_names(asked), common_name(asked)
        proven = asked.is_signature_valid
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except MALFORMED as error:
        raise ConfigError(f"{path} is not a request that `prism certs request` made") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not proven:
        raise ConfigError(f"{path} is not a request that `prism certs request` made")
    return (Subject.server(hosts) if hosts else Subject.client(name)), key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """The first half of a public key's SHA-256, for two people to compare."""
    content = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(content)
    return digest.finalize()[:16].hex(":", 2)


def write_pair(
    folder: Path, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> Path:
    """Write a key and its certificate; the path of the certificate.

    Raises:
        ConfigError: one is there already, or cannot be written.
    """
    path = folder / f"{stem}.pem"
    for there in (path, folder / f"{stem}.key"):
        if there.exists():
            raise ConfigError(f"{there} is there already: move it away first")
    create(folder / f"{stem}.key", _key_pem(key), 0o600)
    write_certificate(path, certificate)
    return path


def write_certificate(path: Path, certificate: x509.Certificate) -> None:
    """Write a certificate to a file that is not there yet; raises ConfigError."""
    create(path, certificate.public_bytes(_PEM), 0o644)


def create(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet; raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except FileExistsError:
        raise ConfigError(f"{path} is there already: move it away first") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    serial, since = x509.random_serial_number(), datetime.now(UTC) - CLOCKS_DIFFER
    own_key = x509.SubjectKeyIdentifier.from_public_key(key)
    builder = x509.CertificateBuilder(issuer, subject, key, serial, since, until)
    return builder.add_extension(own_key, critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(host) or host.replace(".", "").isdigit():
        raise ConfigError(
            f"{host!r} is no DNS name or IP address: write it without scheme, port and brackets"
        )
    return x509.DNSName(host)
