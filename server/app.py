"""One server process: wiring, addresses, certificates, health, signals, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from common.address import Address, check_listen, check_security
from common.config import RunConfig
from common.endpoint import serving
from common.errors import ConfigError, StorageError
from common.files import failure_of, write_atomically
from common.open_files import allow_connections
from common.rpc.prism.v1.federation_pb2_grpc import add_FederationServicer_to_server
from common.wire import SERVICE
from server.admission import Admission
from server.engine import Engine
from server.evaluation import NO_EVALUATION, EvaluationOptions
from server.interceptors import Gate
from server.service import FederationService
from server.standing import standings
from server.start import start_from
from server.strangers import Strangers
from server.tls import CertificateFiles, Pems

GRACE_SECONDS: Final = 5.0
"""How long calls in flight may take once the server was told to stop."""
LOOK_SECONDS: Final = 1.0
LINGER_SECONDS: Final = 60.0
"""How long a finished run waits for its clients to hear of it."""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.max_send_message_length", 1 << 20),
    # Two servers on one port would each get some of the clients.
    ("grpc.so_reuseport", 0),
    # A client needs a poll, a heartbeat and a stream or two; what is over waits on its side.
    ("grpc.max_concurrent_streams", 100),
    # Windows that grow with the speed of a link let one client fill the memory. As they are, an
    # upload moves 64 KiB a round trip: 5 Mbit/s at 100 ms.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)

log = logging.getLogger(__name__)


async def serve(
    config: RunConfig,
    bind: str,
    out: Path,
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    client_ca: Path | None = None,
    allow: Path | None = None,
    token_file: Path | None = None,
    insecure: bool = False,
    reflection: bool = False,
    metrics: str | None = None,
    evaluated: EvaluationOptions = NO_EVALUATION,
    strangers: Strangers | None = None,
    start: Path | None = None,
    claimed: Callable[[], None] | None = None,
    ready: Callable[[int], None] | None = None,
) -> None:
    """Serve one run until it is finished, or the process is told to stop.

    The first SIGINT or SIGTERM stops gracefully, the second SIGINT at once. Call it from the
    main thread.

    Args:
        config: the run.
        bind: HOST:PORT; port 0 takes a free one.
        out: the run's directory, which is taken up if it holds this run already.
        tls_cert: PEM chain of the server; with `tls_key`.
        tls_key: PEM private key.
        client_ca: PEM certificates that client certificates must be signed by (mutual TLS).
        allow: names that may take part, one a line; by default all.
        token_file: names and digests of the tokens that prove them; over TLS only.
        insecure: allow plain text on an address that is not loopback.
        reflection: answer gRPC reflection.
        metrics: HOST:PORT where Prometheus is answered; by default nowhere.
        evaluated: which images the server has to compare the model with.
        strangers: who connects and makes no call, where that is known.
        start: directory of another run, whose last state this one starts from.
        claimed: is called once the directory is this run's; may raise OSError.
        ready: is told the port once the server answers.

    Raises:
        ConfigError, DataError: an option or the config cannot be used.
        StorageError: the run's directory is damaged, or cannot be written.
    """
    files = CertificateFiles.of(tls_cert, tls_key, client_ca)
    admission = _admission(files, allow, token_file)
    address = Address.parse(bind, listening=True)
    check_security(address, secured=files is not None, insecure=insecure)
    if files is None and not address.is_loopback:
        log.warning(
            "--insecure on %s: all travels in plain text, and anybody who reaches it can take "
            "part under any name",
            address,
        )
    # The directory is this run's once the engine is made, so what can fail is tried before.
    check_listen(address)
    figures = None if metrics is None else Address.parse(metrics, listening=True)
    if figures is not None:
        check_listen(figures)
    allow_connections(config.data.clients)
    try:
        if start is not None:
            config = start_from(config, start, out)
        engine = Engine(config, out, evaluated)
    except OSError as error:
        raise StorageError(f"cannot use {out}: {failure_of(error)}") from error
    try:
        if claimed is not None:
            claimed()
        if engine.finished:
            log.info("the run in %s is finished: %d rounds", out, engine.rounds.round)
            await engine.run()
            return
        with _signals(engine), serving(figures, engine.recorder.telemetry.registry):
            await _serve(engine, address, out, files, admission, strangers, reflection, ready)
    except OSError as error:
        raise StorageError(
            f"cannot write {out}: {failure_of(error)}; what was acknowledged is safe, and the "
            "same command goes on from there"
        ) from error
    finally:
        await engine.close()


async def _serve(
    engine: Engine,
    bind: Address,
    out: Path,
    files: CertificateFiles | None,
    admission: Admission,
    strangers: Strangers | None,
    with_reflection: bool,
    ready: Callable[[int], None] | None,
) -> None:
    server = grpc.aio.server(
        interceptors=[Gate(engine, files is not None and files.mutual, admission, strangers)],
        options=_OPTIONS,
    )
    add_FederationServicer_to_server(FederationService(engine), server)
    status = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    if with_reflection:
        names = (SERVICE, SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    try:
        if files is None:
            port = server.add_insecure_port(str(bind))
        else:
            port = server.add_secure_port(str(bind), _credentials(files))
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {bind}: not this machine's, or in use") from error

    listening = Address(bind.host, port)
    address = out / "address"
    await server.start()
    looking = asyncio.create_task(_look_around(engine, out, files, admission, strangers))
    try:
        for name in ("", SERVICE):
            await status.set(name, health_pb2.HealthCheckResponse.SERVING)
        write_atomically(address, f"{listening}\n".encode())
        log.info("listening on %s, %s", listening, "TLS" if files else "plain text")
        if ready is not None:
            ready(port)
        await engine.run()
        if engine.finished:
            log.info("all rounds are closed; waiting for the clients to hear of it")
            await engine.linger(LINGER_SECONDS)
    finally:
        looking.cancel()
        address.unlink(missing_ok=True)
        engine.stop()
        await status.enter_graceful_shutdown()
        await server.stop(GRACE_SECONDS)


async def _look_around(
    engine: Engine,
    out: Path,
    files: CertificateFiles | None,
    admission: Admission,
    strangers: Strangers | None,
) -> None:
    """Once a second, what no call tells of."""
    if strangers is not None:
        strangers.secured = files is not None
    while True:
        admission.refresh()
        for name in engine.live():
            if not admission.admits(name):
                log.warning("%s may no longer take part", name)
                await engine.expel(name)
        if strangers is not None:
            strangers.look(time.monotonic())
        now, rounds = time.monotonic(), engine.rounds
        engine.recorder.recent.looked(now, rounds.round, rounds.phase)
        states, uploads = standings(rounds, now), engine.intake.uploads
        engine.recorder.telemetry.looked(states, uploads, out / "journal")
        if files is not None:
            files.remind(datetime.now(UTC))
        await asyncio.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def _signals(engine: Engine) -> Iterator[None]:
    """The first signal stops the engine, a second SIGINT the process."""
    told = False

    def stop(number: signal.Signals) -> None:
        nonlocal told
        if told and number is signal.SIGINT:
            os._exit(130)
        if not told:
            log.info("%s: stopping; the run goes on when the server is started again", number.name)
        told = True
        engine.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _admission(
    files: CertificateFiles | None, allow: Path | None, token_file: Path | None
) -> Admission:
    """The lists of who may take part, which need something that proves names."""
    if token_file is not None and files is None:
        raise ConfigError("--token-file needs --tls-cert and --tls-key: tokens travel by TLS only")
    if token_file is not None and files is not None and files.mutual:
        raise ConfigError(
            "--token-file is for clients without certificates, and --client-ca asks all for one: "
            "choose"
        )
    if allow is not None and token_file is None and not (files and files.mutual):
        log.warning("--allow without --client-ca or --token-file: nothing proves a client's name")
    return Admission(allow, token_file)


def _credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """TLS from files, which are looked at again at every handshake."""

    def configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pems.key, pems.chain)], pems.roots)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        pems = files.refreshed()
        return None if pems is None else configuration(pems)

    # None is for no change; the stubs do not say so.
    return grpc.dynamic_ssl_server_credentials(
        configuration(files.pems), cast(Any, fetch), require_client_authentication=files.mutual
    )
