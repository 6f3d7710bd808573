"""Real states for `benchmarks.comm`: what rounds of a simulated run start from and end in.

    python -m benchmarks.capture configs/mnist.toml --data-dir data --set data.clients=10 \
        --rounds 0,20,39 --out build/states
    python -m benchmarks.comm --states build/states/*.npz

A file holds `scores` (d,) int16, the global state that the round started from, and
`client_scores` (K, d) int16, what the clients trained from it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.simulate import client_moments, simulate
from common.config import load_config
from common.data import open_source
from common.encoders import load_encoder
from common.errors import ConfigError, PrismError


def capture(
    config: Annotated[Path, typer.Argument(help="Run config; all rounds of it are simulated.")],
    rounds: Annotated[str, typer.Option(help="Rounds to keep, from 0, such as 0,20,39.")],
    out: Annotated[Path, typer.Option(help="Folder of the files.")],
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")] = 0,
) -> None:
    """Simulate a run and keep the states of some of its rounds."""
    if threads:
        torch.set_num_threads(threads)
    try:
        run = load_config(config, override or ())
        if run.method == "fedavg":
            raise ConfigError('method = "fedavg" trains weights; mask codecs have no use for them')
        wanted = _rounds(rounds, run.rounds)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {out}: {error.strerror}; name a folder") from error
        device = torch.device("cpu")
        encoder = load_encoder(run.encoder.name, run.encoder.layers, run.encoder.pool)
        source = open_source(run.data.name, data_dir)
        moments = client_moments(run, source, encoder, device)
        for done in simulate(run, encoder, moments, device):
            round_ = done.start.round
            print(f"round {round_ + 1} of {run.rounds}", file=sys.stderr, flush=True)
            if round_ in wanted:
                path = out / f"{run.name}-round-{round_:04d}.npz"
                np.savez(path, scores=done.start.scores, client_scores=np.stack(done.locals))
                print(path, flush=True)
            if round_ == max(wanted):
                break
    except PrismError as error:
        raise SystemExit(f"{sys.argv[0]}: {error}") from error


def _rounds(text: str, total: int) -> set[int]:
    try:
        wanted = {int(part) for part in text.split(",")}
    except ValueError as error:
        raise ConfigError(f"--rounds {text}: write numbers, such as 0,20,39") from error
    if not all(0 <= round_ < total for round_ in wanted):
        raise ConfigError(f"--rounds {text}: the run has rounds 0 to {total - 1}")
    return wanted


if __name__ == "__main__":
    typer.run(capture)
