"""`prism certs`: a private authority and the certificates of a federation."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from common.errors import PrismError, printable

certs = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make and show certificates of an authority of your own.\n\n\b\n"
    "prism certs init                                       on the machine that signs\n"
    "prism certs server fl.example.org 192.0.2.7            its key is made here, too\n"
    "prism certs client hospital-a\n"
    "prism certs request hospital-b                         on the client's own machine\n"
    "prism certs sign hospital-b.csr                        back where the authority is\n"
    "prism certs show certs/*.pem\n"
    "prism certs federation fl.example.org --clients 3      all of these, on one machine",
)

Folder = Annotated[Path, typer.Option("--dir", help="Folder of the authority and what it signs.")]
Here = Annotated[Path, typer.Option("--dir", help="Folder for the key and the request.")]
Days = Annotated[int, typer.Option(min=1, max=36500, help="How long it is valid.")]
_CERTS = Path("certs")


@certs.command()
def init(
    folder: Folder = _CERTS,
    name: Annotated[str | None, typer.Option(help="What the authority is called.")] = None,
    days: Days = 3650,
) -> None:
    """Make an authority: ca.pem, which everybody is given, and ca.key, which nobody is.

    \b
    prism certs init --dir certs
    """
    from prism.certificates import Authority

    with _in_one_line():
        path = Authority.make(folder, name or f"prism authority {secrets.token_hex(4)}", days)
    typer.echo(f"{path} is the authority's certificate: give it to the server and every client")
    typer.echo(f"{path.with_suffix('.key')} signs for it: keep it where nothing else runs")


@certs.command()
def server(
    names: Annotated[
        list[str], typer.Argument(help="DNS names and IP addresses that clients reach it by.")
    ],
    folder: Folder = _CERTS,
    days: Days = 365,
) -> None:
    """Make a server's certificate and key.

    \b
    prism certs server fl.example.org 192.0.2.7
    """
    from prism.certificates import Authority, Subject

    with _in_one_line():
        path = Authority.read(folder).issue(folder, Subject.server(names), days)
    key, ca = path.with_suffix(".key"), folder / "ca.pem"
    typer.echo(f"prism server ... --tls-cert {path} --tls-key {key} --client-ca {ca}")


@certs.command()
def client(
    name: Annotated[str, typer.Argument(help="The client's name in the federation.")],
    folder: Folder = _CERTS,
    days: Days = 365,
) -> None:
    """Make a client's certificate and key; `request` and `sign` keep the key where it is used.

    \b
    prism certs client hospital-a
    """
    from prism.certificates import Authority, Subject

    with _in_one_line():
        path = Authority.read(folder).issue(folder, Subject.client(name), days)
    key, ca = path.with_suffix(".key"), folder / "ca.pem"
    typer.echo(f"prism client ... --ca {ca} --cert {path} --key {key}")


@certs.command()
def request(
    names: Annotated[
        list[str],
        typer.Argument(help="The client's name; with --server DNS names and IP addresses."),
    ],
    folder: Here = Path(),
    of_server: Annotated[bool, typer.Option("--server", help="Ask for a server's.")] = False,
) -> None:
    """Make a key on the machine that uses it, and a request that may be sent to the authority.

    \b
    prism certs request hospital-b
    """
    from prism import certificates
    from prism.certificates import Subject

    with _in_one_line():
        if not of_server and len(names) != 1:
            raise typer.BadParameter("a client has one name; a server's certificate takes --server")
        subject = Subject.server(names) if of_server else Subject.client(names[0])
        path = certificates.request(folder, subject)
        _, key = certificates.read_request(path)
    typer.echo(f"send {path} to the authority; {path.with_suffix('.key')} stays here")
    typer.echo(f"fingerprint {certificates.fingerprint(key)}")


@certs.command()
def sign(
    file: Annotated[Path, typer.Argument(help="A request.")],
    folder: Folder = _CERTS,
    days: Days = 365,
    for_server: Annotated[
        bool, typer.Option("--server", help="Sign a server's; without it a client's.")
    ] = False,
) -> None:
    """Sign a request. Compare its fingerprint with who sent it, over another way, first.

    \b
    prism certs sign hospital-b.csr
    """
    from common.errors import ConfigError
    from prism import certificates
    from prism.certificates import Authority

    with _in_one_line():
        subject, key = certificates.read_request(file)
        if bool(subject.hosts) != for_server:
            asked = "server" if subject.hosts else "client"
            raise ConfigError(f"{file} asks for a {asked}'s certificate, for {subject.name}")
        signed = Authority.read(folder).sign(subject, key, days)
        path = file.with_suffix(".pem")
        certificates.write_certificate(path, signed)
    whom = ", ".join(subject.hosts) or subject.name
    typer.echo(f"signed for {whom}, fingerprint {certificates.fingerprint(key)}")
    typer.echo(f"send {path} and {folder / 'ca.pem'} back; both may be seen by anybody")


@certs.command()
def token(
    name: Annotated[str, typer.Argument(help="The client's name in the federation.")],
    add: Annotated[Path, typer.Option(help="The server's --token-file, which it is added to.")],
    folder: Annotated[Path, typer.Option("--dir", help="Folder for the client's file.")] = Path(),
) -> None:
    """Make a token for a client that has no certificate: NAME.token, which it alone is given.

    \b
    prism certs token hospital-c --add tokens
    """
    from common.errors import ConfigError
    from common.tokens import Token, read_proofs
    from prism.certificates import Subject, create

    with _in_one_line():
        subject, made = Subject.client(name), Token.make(name)
        if add.exists() and name in read_proofs(add):
            raise ConfigError(f"{add} has a token of {name}: take that line out first")
        path = folder / f"{subject.stem}.token"
        create(path, made.line.encode(), 0o600)
        try:
            with add.open("a", encoding="utf-8") as file:
                file.write(made.proof)
        except OSError as error:
            path.unlink()
            raise ConfigError(f"cannot write {add}: {error.strerror}") from error
    typer.echo(f"give {path} to {name} by a way that nobody listens on; {add} has its digest alone")


@certs.command()
def federation(
    names: Annotated[
        list[str], typer.Argument(help="DNS names and IP addresses that clients reach it by.")
    ],
    clients: Annotated[int, typer.Option(min=1, max=1000, help="How many clients have a place.")],
    folder: Folder = _CERTS,
    server_dir: Annotated[
        Path, typer.Option(help="Folder for ca.pem, server.* and, for `prism health`, health.*.")
    ] = Path("tls"),
    places: Annotated[
        Path, typer.Option(help="Folder for a folder each, for `prism client --places`.")
    ] = Path("places"),
    days: Days = 365,
) -> None:
    """Make what a server and clients on one machine need; renew what ends within 30 days.

    \b
    prism certs federation localhost 127.0.0.1 --clients 3
    """
    from prism.furnish import furnish

    with _in_one_line():
        made = list(furnish(folder, server_dir, names, places, clients, days))
    typer.echo(f"{len(made)} certificates made, the others are good: {server_dir}, {places}")


@certs.command()
def show(
    files: Annotated[list[Path], typer.Argument(help="Certificates, PEM.")],
) -> None:
    """Say what certificates are: whose, from whom, until when, and whether the key is safe.

    \b
    prism certs show certs/*.pem
    """
    with _in_one_line():
        for path in files:
            for line in _described(path):
                typer.echo(printable(line))


def _described(path: Path) -> Iterator[str]:
    from common.pem import (
        CLIENT,
        SERVER,
        common_name,
        host_names,
        issuer_name,
        load_certificates,
        purposes_of,
        readable_by_all,
    )

    for certificate in load_certificates(path)[1]:
        purposes = purposes_of(certificate)
        kind = {SERVER in purposes: "server", CLIENT in purposes: "client"}.get(True, "authority")
        yield f"{path}: {kind}, {common_name(certificate) or 'without a name'}"
        if hosts := host_names(certificate):
            yield f"  reached by  {', '.join(hosts)}"
        yield f"  signed by   {issuer_name(certificate) or 'nobody that it names'}"
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        state = f"{left.days} days left" if left.days >= 0 else "EXPIRED"
        yield f"  valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, {state}"
    key = path.with_suffix(".key")
    if key.exists():
        safe = "EVERYBODY HERE CAN READ IT: chmod 600" if readable_by_all(key) else "kept private"
        yield f"  key         {key}, {safe}"


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except PrismError as error:
        raise SystemExit(f"prism certs: {error}") from error
