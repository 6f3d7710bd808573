"""Clients that send wrong masks on purpose: what they do to a run, and what `robust` keeps of it.

    python -m benchmarks.poison configs/mnist.toml --data-dir data --set rounds=20 \\
        --set train.local_steps=10 --set model.image_size=16 --out poison.jsonl

For each partition and each case (clients, attackers of them): all of them honest ("none"); those
who would attack not there at all, nor their images ("absent"); and attackers that send the inverse
of their mask, a mask of ones, or one drawn by tossing coins, or each of these in turn ("mixed");
each with `robust` as "none" and as "trim". Scores and weights are negated, set to the largest, or
drawn. Where every update of an attacker is left out, the run is the same bit for bit whatever they
send, so that "mixed" tells of all three. Runs whose line is in --out already are not run again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Setting
from benchmarks.simulate import client_moments, client_name, simulate
from client.update import encode_update
from common.codecs import mask_codec, score_codec, weight_codec
from common.config import RunConfig, load_config
from common.encoders import load_encoder
from common.errors import ConfigError, PrismError
from common.layout import mask_context, update_layout
from common.masks import pack, unpack
from common.model.export import build_model
from common.seeding import derive_seed
from common.state import GlobalState, Values

PARTITIONS: Final = ("iid", "shards")
CASES: Final = ("5/1", "10/3")
KINDS: Final = ("invert", "fill", "random")
ATTACKS: Final = ("none", "absent", *KINDS, "mixed")
ROBUST: Final = ("none", "trim")


@dataclass(frozen=True)
class Row:
    """One run: how images are split, among how many, what so many of them do, and the rule."""

    partition: str
    clients: int
    attackers: int
    attack: str
    robust: str

    @classmethod
    def of(cls, partition: str, case: str, attack: str, robust: str) -> Row:
        """The row of a case "CLIENTS/ATTACKERS"; raises ConfigError if it is none."""
        clients, slash, attackers = case.partition("/")
        if not (slash and clients.isdecimal() and attackers.isdecimal()):
            raise ConfigError(f"--case {case}: write CLIENTS/ATTACKERS, such as 5/1")
        if attack not in ATTACKS:
            raise ConfigError(f"--attack {attack}: choose {', '.join(ATTACKS)}")
        return cls(partition, int(clients), int(attackers), attack, robust)

    @property
    def changes(self) -> list[str]:
        """What it changes in the config."""
        return [
            f'data.partition="{self.partition}"',
            f"data.clients={self.clients}",
            f"round.min_clients={self.clients}",
            f'robust="{self.robust}"',
        ]


def attacked(attack: str, attackers: Collection[str]) -> Callable[..., tuple[bytes, ...]]:
    """`encode_update`, but that what attackers send is tampered with."""

    def encode(
        config: RunConfig,
        state: GlobalState,
        values: Values,
        *,
        rank: int,
        cohort_size: int,
        client: str,
    ) -> tuple[bytes, ...]:
        place = {"rank": rank, "cohort_size": cohort_size}
        payloads = encode_update(config, state, values, **place, client=client)
        if client not in attackers:
            return payloads
        kind = KINDS[(rank + state.round) % len(KINDS)] if attack == "mixed" else attack
        draw = np.random.Generator(
            np.random.Philox(derive_seed(config.seed, "attack", state.round, client))
        )
        sent = []
        for segment, payload in zip(update_layout(config), payloads, strict=True):
            if segment.kind == "mask":
                codec = mask_codec(segment.codec)
                context = mask_context(config, state, segment, **place)
                bits = unpack(codec.decode(payload, context))
                sent.append(codec.encode(pack(_bits(kind, bits, draw)), context))
            else:
                other = (score_codec if segment.kind == "score" else weight_codec)(segment.codec)
                honest = other.decode(payload, segment.count)
                sent.append(other.encode(_numbers(kind, honest, draw)))
        return tuple(sent)

    return encode


def _bits(attack: str, bits: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    if attack == "invert":
        return 1 - bits
    return np.ones_like(bits) if attack == "fill" else draw.integers(0, 2, bits.size, np.uint8)


def _numbers(attack: str, honest: NDArray[Any], draw: np.random.Generator) -> NDArray[Any]:
    """Scores or weights of the same type; int16 has no negative of its least."""
    largest = 32767 if honest.dtype == np.int16 else 1.0
    if attack == "invert":
        sent = -np.maximum(honest, -largest)
    elif attack == "fill":
        sent = np.full_like(honest, largest)
    else:
        sent = draw.uniform(-largest, largest, honest.size)
    return np.asarray(sent, dtype=honest.dtype)


def measured_row(row: Row, setting: Setting) -> dict[str, Any]:
    """One line, from the end of a whole run."""
    config, device = setting.config, setting.device
    encoder = load_encoder(config.encoder.name, config.encoder.layers, config.encoder.pool)
    moments = client_moments(config, setting.source(), encoder.to(device), device)
    if row.attack == "absent":
        moments = moments[row.attackers :]
    active = row.attack not in ("none", "absent")
    attackers = {client_name(index) for index in range(row.attackers if active else 0)}
    wrong: list[bool] = []
    honest: list[bool] = []
    for done in simulate(config, encoder, moments, device, attacked(row.attack, attackers)):
        for name, figures in done.clients.items():
            (wrong if name in attackers else honest).append(figures["left_out"])
    source = done.source
    model = build_model(config, source.state, source.unseen, source.cells)
    _, quality = setting.judged(setting.evaluator(), model, config.rounds)
    return {
        "run": config.run_id().hex(),
        "features": setting.features,
        "samples": setting.samples,
        **asdict(row),
        "rounds": config.rounds,
        "updates_of_attackers": len(wrong),
        "left_out_of_attackers": sum(wrong),
        "updates_of_others": len(honest),
        "left_out_of_others": sum(honest),
        **quality,
    }


def main(
    path: Annotated[Path, typer.Argument(metavar="CONFIG", help="Run config.")],
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    partition: Annotated[list[str] | None, typer.Option(help="By default both.")] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="CLIENTS/ATTACKERS; by default 5/1 and 10/3.")
    ] = None,
    attack: Annotated[list[str] | None, typer.Option(help="By default all six.")] = None,
    robust: Annotated[list[str] | None, typer.Option(help="By default both.")] = None,
    features: Annotated[str, typer.Option(help="lenet, small or inception.")] = "lenet",
    samples: Annotated[int, typer.Option(help="Generated images that are judged.")] = 2000,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")] = 0,
    cache: Annotated[Path, typer.Option(help="Where classifiers are kept.")] = Path("build/cache"),
    out: Annotated[Path | None, typer.Option(help="JSON lines; read first, then added to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, no table.")] = False,
) -> None:
    """Measure what attackers do to a run, and what trimming keeps of it."""
    if threads:
        torch.set_num_threads(threads)
    kept = out.read_text().splitlines() if out is not None and out.exists() else []
    there = {_key(line): line for line in map(json.loads, kept)}
    measured = []
    try:
        chosen = (partition or PARTITIONS, case or CASES, attack or ATTACKS, robust or ROBUST)
        rows = [Row.of(*words) for words in product(*chosen)]
        # All of them before the first is run, which takes minutes.
        configs = [load_config(path, [*(override or []), *row.changes]) for row in rows]
        for row, config in zip(rows, configs, strict=True):
            run = {"run": config.run_id().hex(), "features": features, "samples": samples}
            line = there.get(_key({**run, **asdict(row)}))
            if line is None:
                judging = (features, config.rounds, samples, torch.device(device), cache, False)
                line = measured_row(row, Setting(config, data_dir, *judging))
                if out is not None:
                    with out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
            measured.append(line)
            if as_json:
                print(json.dumps(line), flush=True)
    except PrismError as error:
        raise SystemExit(f"{sys.argv[0]}: {error}") from error
    if not as_json:
        Console().print(_table(measured))


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[key] for key in ("run", "features", "samples", "attackers", "attack"))


def _table(lines: list[dict[str, Any]]) -> Table:
    distance = next((k for line in lines for k in line if k.startswith(("FD", "FID"))), "FD")
    columns = ("partition", "clients", "attackers", "attack")
    out = Table(*columns, distance, "attackers left out", "others left out", box=None)
    for line in lines:
        out.add_row(
            *(str(line[column]) for column in columns),
            f"{line[distance]:.3g}",
            f"{line['left_out_of_attackers']} of {line['updates_of_attackers']}",
            f"{line['left_out_of_others']} of {line['updates_of_others']}",
        )
    return out


if __name__ == "__main__":
    typer.run(main)
