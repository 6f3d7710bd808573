"""`prism check`: would it run, and what would it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.command_line import DataDir, Override, RunData


def check(
    config: Annotated[Path, typer.Argument(help="Run config, such as configs/mnist.toml.")],
    override: Override = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's directory; by default runs/NAME.")
    ] = None,
    data: RunData = None,
    data_dir: DataDir = None,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="The images are on the clients' machines.")
    ] = False,
    bind: Annotated[
        str | None, typer.Option(help="HOST:PORT that the server would listen on.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="As the server takes it.")] = None,
    insecure: Annotated[bool, typer.Option(help="Likewise.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for the clients.")] = "auto",
    encoder_weights: Annotated[
        Path | None, typer.Option(help="vgg19_bn's weights, where they cannot be downloaded.")
    ] = None,
) -> None:
    """Say what would keep a run from working, and what it would cost.

    Nothing is started, and no directory is claimed. Bytes, memory and time are estimates: from a
    few steps that are tried here, and from bits a parameter that were measured. Exit code 1 if
    there is a problem.

    \b
    prism check configs/quickstart.toml
    prism check configs/mnist.toml --data-dir data --set data.partition=shards
    prism check run.toml --elsewhere --bind 0.0.0.0:7070 --tls-cert cert.pem --tls-key key.pem
    """
    from rich.console import Console

    from common.checklist import Checklist
    from common.config import load_config
    from common.model.architecture import Architecture
    from prism.own_images import fitted
    from prism.preflight import Places, check_run

    checks = Checklist(typer.echo)
    resolved = checks.attempt(
        lambda: load_config(config, fitted(config, override or (), data, checks.note))
    )
    if resolved is not None:
        checks.ok(
            f"config {config}: {resolved.method}, {resolved.rounds} rounds, "
            f"{Architecture.of(resolved).dimension:,} parameters"
        )
        places = Places(
            out or Path("runs") / resolved.name,
            None if elsewhere else data or resolved.data.name,
            data_dir,
            bind,
            device,
            encoder_weights,
            tls_cert,
            tls_key,
            client_ca,
            insecure,
        )
        held = check_run(resolved, places, checks)
        if held is not None:
            Console().print(held.table())
    if checks.problems:
        many = len(checks.problems)
        raise SystemExit(
            f"prism check: {many} problem{'s' if many > 1 else ''}; nothing was started"
        )
