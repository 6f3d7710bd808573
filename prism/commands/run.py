"""`prism run`: a local federation of real processes over loopback gRPC."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import DataDir, Override, RunData
from common.errors import ConfigError, PrismError


def run(
    config: Annotated[Path, typer.Argument(help="Run config, such as configs/quickstart.toml.")],
    clients: Annotated[
        int | None, typer.Option(min=1, help="Client processes; by default data.clients.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's directory; by default runs/NAME.")
    ] = None,
    override: Override = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Start from the last state of another run's directory."),
    ] = None,
    data: RunData = None,
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for the clients.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads a client; by default cores / clients.")
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            help="Images for the server's evaluations each output.evaluate_every rounds; by "
            "default the test part of the run's own data."
        ),
    ] = None,
    features: Annotated[
        str, typer.Option(help="Of those evaluations: lenet, small or inception.")
    ] = "lenet",
    relay: Annotated[
        bool,
        typer.Option(help="Put a metering relay before each client; counts in RUN/relay."),
    ] = False,
    rate: Annotated[
        str | None, typer.Option(help="With --relay: bits a second each way, such as 1mbit.")
    ] = None,
    delay: Annotated[str | None, typer.Option(help="With --relay: one way, such as 50ms.")] = None,
    tls: Annotated[
        bool, typer.Option(help="Encrypt, with a certificate made for this machine in RUN/tls.")
    ] = False,
) -> None:
    """Run a whole federation on this machine, in real processes.

    One server and N clients talk gRPC over loopback. Everything ends up in the run's directory:
    the resolved config, metrics.jsonl, comm.jsonl, TensorBoard events, pictures and
    model.prism. Stopped with Ctrl-C, the same command takes it up again; a second Ctrl-C does not
    wait for the processes to end.

    With --data folder:PATH the sub-folders are the classes, unless the config lists others in
    data.classes, or data.labels is "ignore".

    \b
    prism run configs/quickstart.toml
    prism run configs/quickstart.toml --data folder:PATH --set name=mine
    prism run configs/mnist.toml --data-dir data --set rounds=20 --set train.local_steps=40
    prism run configs/quickstart.toml --set output.evaluate_every=10
    prism run configs/quickstart.toml --relay --tls --rate 1mbit --delay 50ms
    """
    from prism.run.interrupt import Interrupt

    # Before what takes long to import.
    with Interrupt() as interrupt:
        from common.config import load_config
        from prism.own_images import fitted
        from prism.run.certificate import make_certificate
        from prism.run.federation import check_free, check_split, federate, relay_options

        try:
            changes = list(override or [])
            if clients is not None:
                changes += [f"data.clients={clients}", f"round.start_clients={clients}"]
            changes = fitted(config, changes, data, typer.echo)
            resolved = load_config(config, changes)
            directory = out or Path("runs") / resolved.name
            spec = data or resolved.data.name
            if spec == "folder":
                raise ConfigError("data.name is folder: say which, with --data folder:PATH")
            count = resolved.data.clients
            if resolved.start_clients > count:
                raise ConfigError(
                    f"round.start_clients is {resolved.start_clients}, but {count} clients are "
                    f"started: --clients {resolved.start_clients}, or --set "
                    f"round.start_clients={count}"
                )
            cores = len(os.sched_getaffinity(0))
            options = ["--data", spec, "--device", device]
            options += ["--threads", str(threads or max(1, cores // count))]
            server_options = [] if start is None else ["--from", str(start)]
            if resolved.output.evaluate_every and eval_data is None and spec.startswith("folder:"):
                raise ConfigError(
                    "output.evaluate_every would compare the model with the clients' own images: "
                    "give others with --eval-data, or output.evaluate_every=0"
                )
            if resolved.output.evaluate_every or eval_data is not None:
                server_options += ["--eval-data", eval_data or spec, "--features", features]
            if data_dir is not None:
                options += ["--data-dir", str(data_dir)]
                server_options += ["--eval-data-dir", str(data_dir)]
            relays = relay_options(relay, rate, delay)
            check_free(directory, resolved)
            check_split(resolved, spec, data_dir)
            if tls:
                certificate, key = make_certificate(directory / "tls")
                options += ["--ca", str(certificate)]
                server_options += ["--tls-cert", str(certificate), "--tls-key", str(key)]
            federate(
                resolved,
                config,
                changes,
                directory,
                options,
                relays,
                server_options,
                interrupt=interrupt,
            )
        except PrismError as error:
            raise SystemExit(f"prism run: {error}") from error
        except OSError as error:
            raise SystemExit(f"prism run: cannot use {error.filename}: {error.strerror}") from error
        interrupt.end_if_asked()
