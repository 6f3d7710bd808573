"""How many clients one server serves, and what a round then costs it.

A real server process, and clients that speak the protocol but do not train: each joins, polls,
fetches what it lacks of the state and sends a mask of d = 168,336 bits that was made once. They
run beside the server on the same machine, each on a connection of its own. Then the same clients
send the same bytes to a bare gRPC server, which parses and keeps nothing.

    python -m benchmarks.scale --clients 200 --rounds 3
    python -m benchmarks.scale --clients 1000 --rounds 5 --json
"""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.scale.processes import Served, drive, serving
from common.config import RunConfig, parse_config
from common.open_files import allow_connections


def scale_config(clients: int, rounds: int, width: int = 16) -> RunConfig:
    """A run of raw masks in which every client takes part in every round."""
    return parse_config(
        f"rounds = {rounds}\n"
        f"[model]\nwidth = {width}\nimage_size = 16\n"
        f'[data]\nname = "mnist"\nlabels = "ignore"\nclients = {clients}\n'
        f"[round]\nmin_clients = {clients}\nquorum = 1.0\nlease_seconds = 60\n"
        '[codec]\nup = "raw"\n'
        "[output]\nsample_every = 0"
    )


def measure(clients: int, rounds: int, processes: int, width: int = 16) -> dict[str, Any]:
    """Both servers, one after the other, under the same clients."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "run.toml"
        config.write_text(scale_config(clients, rounds, width).to_toml())
        out = folder / "run"
        words = ("-m", "server", config, "--bind", "127.0.0.1:0", "--out", out)
        with serving(words, out / "address", out / "metrics.jsonl") as server:
            seconds = drive("run", server, config, clients, rounds, processes)
        listening = folder / "address"
        with serving(("-m", "benchmarks.scale.sink", listening), listening) as sink:
            bare = drive("sink", sink, config, clients, rounds, processes)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        complete = sum(json.loads(line)["clients"] == clients for line in lines)
        return {
            "clients": clients,
            "rounds": rounds,
            "complete_rounds": complete,
            "server": figures(server, rounds, seconds),
            "sink": figures(sink, rounds, bare),
            "python": platform.python_version(),
            "machine": platform.machine(),
        }


def figures(served: Served, rounds: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """What a server used, and how long its clients waited.

    Rounds of a run are those between the first and the last line of its metrics, so what joining
    costs counts for none; of a sink, all that it did is divided by the rounds.
    """
    samples = served.samples
    closed = [next((s for s in samples if s.rounds >= n), samples[-1]) for n in range(rounds + 1)]
    if served.counts_rounds and rounds > 1:
        first, last, count = closed[1], closed[-1], rounds - 1
    else:
        first, last, count = samples[0], samples[-1], rounds
    return {
        "seconds_a_round": round((last.at - first.at) / count, 2),
        "cpu_seconds_a_round": round((last.cpu - first.cpu) / count, 2),
        "peak_mib": round(max(s.resident for s in samples) / 2**20),
        **(
            {"mib_after_each_round": [round(s.resident / 2**20) for s in closed[1:]]}
            if served.counts_rounds
            else {}
        ),
        **{
            f"{kind}_{name}": round(float(np.percentile(values, q)), 3)
            for kind, values in sorted(seconds.items())
            for name, q in (("p50", 50), ("p99", 99))
        },
    }


def main(
    clients: Annotated[int, typer.Option(min=1, help="Clients, all in every round.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the first is not timed.")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="Processes that the clients are in.")] = 2,
    width: Annotated[int, typer.Option(min=1, help="Of the generator: 16 gives d = 168,336.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure one server under many clients."""
    allow_connections(clients)
    found = measure(clients, rounds, min(processes, clients), width)
    if as_json:
        print(json.dumps(found))
        return
    print(f"{clients} clients, {found['complete_rounds']} of {rounds} rounds with all of them")
    for side in ("server", "sink"):
        print(f"{side}: " + ", ".join(f"{key} {value}" for key, value in found[side].items()))


if __name__ == "__main__":
    typer.run(main)
