"""What would keep a client from taking part, found before it joins; nothing is released or kept."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from client.class_release import calibrate_classes
from client.ledger import Entry, Ledger
from client.local_data import PrivateData
from client.mechanisms import calibrate_mask_noise, calibrate_moments
from client.messages import Joined, Security
from client.privacy_guard import Guard
from client.store import ClientStore
from client.transport import Transport
from common.accounting import compose, gaussian_epsilon
from common.address import Address, check_security
from common.checklist import Checklist, check_writable
from common.config import RunConfig, parse_config
from common.errors import ConfigError
from common.fingerprint import Fingerprint
from common.pem import (
    CLIENT,
    check_period,
    read_authorities,
    read_pair,
)

CLOCK_SECONDS: Final = 60.0
"""By which a clock may be off: certificates and ledgers go by it."""
_INSTANCE: Final = bytes(16)


@dataclass(frozen=True)
class Setup:
    """How a client would be started.

    Attributes:
        server: HOST:PORT.
        security: the channel's.
        insecure: whether plain text may leave this machine.
        name: as `--name`.
        state: as `--state`.
        max_epsilon: as `--max-epsilon`.
    """

    server: str
    security: Security
    insecure: bool = False
    name: str | None = None
    state: Path | None = None
    max_epsilon: float | None = None


def check_client(setup: Setup, data: PrivateData | None, checks: Checklist) -> None:
    """Try all that a client needs.

    Args:
        setup: how it would be started.
        data: its images, if they could be opened.
        checks: what is found.
    """
    before = checks.attempt(lambda: _check_state(setup, checks)) or []
    name, joined, config = "", None, None
    if checks.attempt(lambda: _check_files(setup.security, checks)):
        name = checks.attempt(lambda: _name(setup)) or socket.gethostname()
        joined = checks.attempt(lambda: _meet(setup, name, checks))
    if joined is not None:
        config = checks.attempt(lambda: _check_run(setup, joined, checks))
    if data is not None:
        checks.attempt(lambda: _check_images(data, config, joined, name, before, setup, checks))


def _check_state(setup: Setup, checks: Checklist) -> list[Entry]:
    """What the ledger holds."""
    if setup.state is None:
        checks.note("no --state: what was trained is forgotten when the client ends")
        return []
    free = check_writable(setup.state)
    entries = []
    if setup.state.exists():
        # Whoever is using it holds the lock.
        ClientStore(setup.state, setup.name).close()
        entries = Ledger(setup.state).entries()
    checks.ok(
        f"state {setup.state}: {free / 1e6:,.0f} MB free, {len(entries)} entries in its ledger"
    )
    return entries


def _name(setup: Setup) -> str:
    """The name that the client would have; it makes one up only when it starts."""
    given = setup.name or setup.security.proven_name()
    if given is None and setup.state is not None and (setup.state / "client.json").exists():
        store = ClientStore(setup.state, None)
        try:
            return store.identity()[0]
        finally:
            store.close()
    return given or socket.gethostname()


def _check_files(security: Security, checks: Checklist) -> bool:
    """Whether they can be used, if it says anything."""
    if security.ca is None:
        if security.cert or security.key:
            raise ConfigError("--cert and --key need --ca")
        return True
    read_authorities(security.ca)
    checks.ok(f"authority {security.ca}: {check_period(security.ca, time.time())}")
    if security.cert is not None or security.key is not None:
        if security.cert is None or security.key is None:
            raise ConfigError("mutual TLS needs both --cert and --key")
        read_pair(security.cert, security.key, CLIENT)
        checks.ok(f"certificate {security.cert}: {check_period(security.cert, time.time())}")
    return True


def _meet(setup: Setup, name: str, checks: Checklist) -> Joined:
    """Ask the server for its run, as a client that has not joined yet."""
    address = Address.parse(setup.server)
    secured = setup.security.ca is not None
    check_security(address, secured=secured, insecure=setup.insecure)
    transport = Transport(address, setup.security)
    try:
        joined = transport.join(name, _INSTANCE, None, wants_partition=False)
    finally:
        transport.close()
    checks.ok(f"server {address}: answers {name}, {'TLS' if secured else 'plain text'}")
    return joined


def _check_run(setup: Setup, joined: Joined, checks: Checklist) -> RunConfig:
    ahead = time.time() - joined.clock
    if abs(ahead) > CLOCK_SECONDS:
        which = "ahead of" if ahead > 0 else "behind"
        checks.problem(
            f"clock: this machine's is {abs(ahead):,.0f} s {which} the server's: certificates and "
            "ledgers go by it; set one of them"
        )
    else:
        checks.ok(f"clock: {abs(ahead):.0f} s from the server's")
    config = parse_config(joined.config_toml, source="the server's config")
    Fingerprint.of(config).check(joined.fingerprint)
    checks.ok(f"run {config.name}: {config.method}, {config.rounds} rounds; versions agree")
    checks.attempt(lambda: Guard(setup.state, setup.max_epsilon).agree(config))
    return config


def _check_images(
    data: PrivateData,
    config: RunConfig | None,
    joined: Joined | None,
    name: str,
    before: list[Entry],
    setup: Setup,
    checks: Checklist,
) -> None:
    indices = np.arange(len(data.source))
    if config is not None and joined is not None:
        # Which part the server would choose is known only to who joins.
        place = (0, joined.partition[1]) if data.wants_partition else joined.partition
        indices = data.part(config, place)
    broken = 0
    for line in data.source.unreadable(indices):
        checks.problem(line)
        broken += 1
    if not broken:
        checks.ok(f"data {data.source.name}: all {len(indices):,} images can be read")
    if config is None or broken:
        return
    with _warnings_of_the_client(checks):
        images = data.images(config, indices, name)
    checks.ok(f"images: {len(images):,} of {len(images.groups) or 1} groups are trained on")
    encoder = data.encoder(config)
    checks.ok(f"encoder {config.encoder.name}: {encoder.digest().hex()[:12]}")
    _say_guarantee(config, len(images), before, setup.max_epsilon, checks)


def _say_guarantee(
    config: RunConfig, n: int, before: list[Entry], most: float | None, checks: Checklist
) -> None:
    """What the ledger would add up to after this run."""
    privacy = config.privacy
    if privacy.mechanism == "none":
        ends = any(entry.mechanism != "none" for entry in before)
        checks.note(
            "privacy: No formal privacy guarantee, this run has no mechanism"
            + ("; the guarantees in the ledger would end" if ends else "")
        )
        return
    if privacy.mechanism == "mask-noise":
        mus = [calibrate_mask_noise(privacy).mu] * config.rounds
    elif config.classes:
        mus = [calibrate_classes(privacy, n).mu]
    else:
        mus = [calibrate_moments(privacy, n).mu]
    if any(entry.mechanism == "none" for entry in before):
        checks.note("privacy: No formal privacy guarantee, an earlier run had no mechanism")
        return
    total = gaussian_epsilon(compose([*(entry.mu for entry in before), *mus]), privacy.delta)
    line = (
        f"privacy: with this run, the ledger would add up to at most ({total:.4g}, "
        f"{privacy.delta:g}), record-level, replace-one, n public; {len(before)} releases before"
    )
    if most is not None and total > most * (1 + 1e-6):
        checks.problem(f"{line}: more than --max-epsilon {most:g}")
    else:
        checks.ok(line)


@contextmanager
def _warnings_of_the_client(checks: Checklist) -> Iterator[None]:
    """What a client would warn of in its log, as notes."""
    log = logging.getLogger("prism.client")

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            checks.note(record.getMessage())

    handler = Notes(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
