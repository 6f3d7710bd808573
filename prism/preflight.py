"""What would keep a run from working on this machine, found before anything has started."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.local_data import choose_device
from common.address import Address, check_listen, check_security
from common.checklist import Checklist, check_writable
from common.config import RunConfig
from common.data import ImageSource, open_source
from common.errors import ConfigError, DataError
from common.model.architecture import Architecture
from common.pem import SERVER, check_period, read_authorities, read_pair
from prism import estimate
from prism.holdings import Holdings, Indices
from prism.run.federation import check_free

_MOST_NOTES = 5


@dataclass(frozen=True)
class Places:
    """Where a run would be, as `prism run` and `prism server` take it.

    Attributes:
        out: the run's directory.
        data: as `--data`; None where the clients alone have images.
        data_dir: where known data sets lie.
        bind: HOST:PORT that the server would listen on; None for a free port of this machine.
        device: as `--device`.
        encoder_weights: a file to read instead of downloading.
        tls_cert, tls_key, client_ca: as the server takes them.
        insecure: likewise.
    """

    out: Path
    data: str | None = None
    data_dir: Path | None = None
    bind: str | None = None
    device: str = "auto"
    encoder_weights: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    insecure: bool = False


def check_run(config: RunConfig, places: Places, checks: Checklist) -> Holdings | None:
    """Try all that a run needs; and what it would cost, where it could run.

    Returns:
        Who would hold what, where the images are known and can be divided.
    """
    checks.attempt(lambda: _check_directory(config, places.out, checks))
    checks.attempt(lambda: _check_address(places, checks))
    _say_bytes(config, checks)
    roomy = checks.attempt(lambda: _check_memory(config))
    if places.data is None:
        checks.note("the images are with the clients: prism client --check looks at them there")
        return None
    source = checks.attempt(lambda: _open(places, checks))
    if source is None:
        return None
    held = checks.attempt(lambda: Holdings.of(config, source))
    if held is None:
        return None
    checks.attempt(lambda: _check_holdings(config, held, checks))
    _check_images(source, checks)
    if roomy and not checks.problems:
        checks.attempt(lambda: _try_step(config, source, held.parts[0], places, checks))
    return held


def _check_directory(config: RunConfig, out: Path, checks: Checklist) -> None:
    check_free(out, config)
    wanted = estimate.disk(config)
    free = check_writable(out, int(wanted))
    there = "goes on there" if (out / "config.toml").exists() else "can be made"
    checks.ok(f"directory {out}: {there}; about {_mb(wanted)} of {_mb(free)}")


def _check_address(places: Places, checks: Checklist) -> None:
    if places.tls_cert is not None or places.tls_key is not None:
        if places.tls_cert is None or places.tls_key is None:
            raise ConfigError("--tls-cert and --tls-key belong together")
        read_pair(places.tls_cert, places.tls_key, SERVER)
        checks.ok(f"certificate {places.tls_cert}: {check_period(places.tls_cert, time.time())}")
    if places.client_ca is not None:
        read_authorities(places.client_ca)
        checks.ok(f"authority {places.client_ca}: {check_period(places.client_ca, time.time())}")
    if places.bind is not None:
        secured = places.tls_cert is not None
        address = Address.parse(places.bind, listening=True)
        check_security(address, secured=secured, insecure=places.insecure)
        check_listen(address)
        checks.ok(f"address {address}: free")


def _say_bytes(config: RunConfig, checks: Checklist) -> None:
    traffic = estimate.Traffic.of(config)
    checks.ok(
        f"bytes (estimate): {_mb(traffic.up)} up and {_mb(traffic.down)} down for a client in a "
        f"round, {_mb(traffic.total)} in {config.rounds} rounds"
    )


def _check_memory(config: RunConfig) -> bool:
    """Whether there is memory enough to try, by what parameters alone take."""
    clients, free = config.data.clients, estimate.free_memory()
    needed = clients * estimate.client_memory(config) + estimate.server_memory(config)
    if needed > free:
        d = Architecture.of(config).dimension
        raise ConfigError(
            f"memory: {clients} clients and a server with {d:,} parameters take {_mb(needed)} at "
            f"least, and {_mb(free)} are free here: lower model.width, or have fewer clients here"
        )
    return True


def _open(places: Places, checks: Checklist) -> ImageSource:
    if places.data == "folder":
        raise DataError("data.name is folder: say which, with --data folder:PATH")
    source = open_source(places.data or "", places.data_dir)
    checks.ok(f"data {source.name}: {len(source):,} images")
    return source


def _check_holdings(config: RunConfig, held: Holdings, checks: Checklist) -> None:
    held.check(config)
    sizes = [len(part) for part in held.parts]
    each = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{sizes[0]:,}"
    checks.ok(f"split: {len(sizes)} clients, {each} images each")
    left_out = list(held.left_out(config))
    for line in left_out[:_MOST_NOTES]:
        checks.note(f"left out, with fewer than {config.data.min_class_size} images: {line}")
    if len(left_out) > _MOST_NOTES:
        checks.note(f"and {len(left_out) - _MOST_NOTES} more clients that leave classes out")


def _check_images(source: ImageSource, checks: Checklist) -> None:
    broken = 0
    for line in source.unreadable(np.arange(len(source))):
        checks.problem(line)
        broken += 1
    if not broken:
        checks.ok(f"images: all {len(source):,} can be read")


def _try_step(
    config: RunConfig, source: ImageSource, part: Indices, places: Places, checks: Checklist
) -> None:
    torch.set_num_threads(estimate.threads(config))
    program = estimate.peak_memory()
    device = choose_device(places.device)
    trial = estimate.Trial.run(config, source, part, device, places.encoder_weights)
    clients, free = config.data.clients, estimate.free_memory()
    needed = clients * trial.memory + program + estimate.server_memory(config)
    line = (
        f"memory (estimate): {_mb(trial.memory)} a client, {_mb(needed)} for {clients} clients and "
        f"a server here, of {_mb(free)}"
    )
    (checks.problem if needed > free else checks.ok)(line)
    start = len(part) * trial.image * max(1, clients / estimate.cores())
    a_round = estimate.round_seconds(config, trial)
    checks.ok(
        f"time (estimate): {1000 * trial.step:.0f} ms a step on {device}, {a_round:.3g} s a round, "
        f"{_time(start + a_round * config.rounds)} for {config.rounds} rounds of prism run here"
    )


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.2g} MB"


def _time(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
