"""The grid of methods, data sets and partitions, and the tables and curves made of it.

One cell is one method on one partition with one seed; it leaves a file of JSON lines in --out,
and a cell whose file is whole is not run again. Tables and curves are made of what is there.

    python -m benchmarks.reproduce --size cpu --data-dir data --list
    python -m benchmarks.reproduce --size cpu --data-dir data --only mnist/shards --seeds 3
    python -m benchmarks.reproduce --size paper --data-dir data --device cuda --only prism-alpha
    python -m benchmarks.reproduce --tables
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
import typer

import benchmarks.peers.fedavg_gan
import benchmarks.peers.md_gan
import benchmarks.simulate
from benchmarks.measure import Masks, Measured, Setting
from benchmarks.report import write_report
from common.catalogue import DATA_SETS
from common.config import RunConfig, parse_config
from common.errors import ConfigError, PrismError

Measure = Callable[[Setting], Iterator[Measured]]

_UNLABELLED: Final = ("data.labels=ignore",)
_RECIPE: Final = (
    "model.fan_in=torch",
    "train.straight_through=scaled",
    "train.annealing=0",
    "train.learning_rate=0.1",
    "train.learning_rate_final=0.1",
    "train.moving_average_leak=0",
    "train.moving_average_start=uniform",
    "train.moving_average_loss=mean",
    "sharpening=1",
    "mada.enabled=true",
    "mada.space=score",
    "mada.scores=replaced",
    "codec.up=raw",
    "codec.down=keyframe",
    "output.mask=sample",
    "output.average=0",
)
_PUBLISHED: Final = (*_RECIPE, *_UNLABELLED)


@dataclass(frozen=True)
class Method:
    """One row of every table.

    Attributes:
        changes: to the size's config.
        measure: what runs it.
        masks: which are judged; None where there are none.
    """

    changes: tuple[str, ...]
    measure: Measure = benchmarks.simulate.measure
    masks: Masks | None = "exported"


# FedPM has no row: with one bit a parameter it aggregates as PRISM-dagger does, bit for bit.
METHODS: Final[Mapping[str, Method]] = {
    "prism": Method(()),
    "prism-unlabelled": Method(_UNLABELLED),
    "prism-alpha": Method(("alpha=0.7",)),
    "prism-published": Method(_PUBLISHED, masks="fresh"),
    "prism-dagger": Method((*_PUBLISHED, "mada.enabled=false"), masks="fresh"),
    "prism-alpha-published": Method((*_PUBLISHED, "alpha=0.7"), masks="fresh"),
    "prism-published-labels": Method(_RECIPE, masks="fresh"),
    "fedavg": Method(("method=fedavg",), masks=None),
    "fedavg-gan": Method((), benchmarks.peers.fedavg_gan.measure, masks=None),
    "md-gan": Method((), benchmarks.peers.md_gan.measure, masks=None),
}
DATA: Final = tuple(name for name in DATA_SETS if name != "folder")
PARTITIONS: Final = ("iid", "shards", "dirichlet", "attribute")
SIZES: Final[Mapping[str, tuple[str, ...]]] = {
    "cpu": (
        "rounds=60",
        "data.clients=10",
        "model.width=16",
        "model.image_size=16",
        "train.local_steps=10",
        "train.batch_size=64",
        "encoder.name=small",
    ),
    "paper": (
        "rounds=150",
        "data.clients=10",
        "model.width=64",
        "model.image_size=32",
        "train.local_steps=100",
        "train.batch_size=64",
        "encoder.name=vgg19_bn",
    ),
}


@dataclass(frozen=True)
class Cell:
    """One measurement of the grid.

    Attributes:
        size: "cpu" or "paper".
        method: key of METHODS.
        data: key of DATA.
        partition: key of PARTITIONS.
        seed: the run's.
        changes: further `key=value` overrides.
    """

    size: str
    method: str
    data: str
    partition: str
    seed: int
    changes: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """What cells must share to stand in one table."""
        return f"{self.size}/{self.data}/{self.partition}"

    @property
    def name(self) -> str:
        """Unique among cells; `--only` picks those in which its text occurs."""
        return f"{self.group}/{self.method}/{self.seed}"

    def config(self) -> RunConfig:
        """The run, whole; a further override wins over the method's."""
        data = (
            f"seed={self.seed}",
            f"data.name={self.data}",
            f"data.partition={self.partition}",
        )
        changes = (*SIZES[self.size], *data, *METHODS[self.method].changes, *self.changes)
        return parse_config("", changes, source=self.name)

    def path(self, out: Path, setting: Setting) -> Path:
        """Its file; another config or another way to judge it has another name."""
        judged = f"{setting.features}-{setting.every}-{setting.samples}"
        judged += "-fresh" if setting.masks == "fresh" else ""
        digest = self.config().run_id().hex()[:8]
        return out / f"{self.name.replace('/', '-')}-{judged}-{digest}.jsonl"


def grid(
    size: str, seeds: int, only: tuple[str, ...], changes: tuple[str, ...] = ()
) -> Iterator[Cell]:
    """All cells of a size whose name has every text of `only` in it."""
    for data in DATA:
        for partition in PARTITIONS:
            if (partition == "attribute") != (data == "celeba") and partition != "iid":
                continue
            for seed in range(1, seeds + 1):
                for method in METHODS:
                    cell = Cell(size, method, data, partition, seed, changes)
                    if all(_within(text, cell) for text in only):
                        yield cell


def _within(text: str, cell: Cell) -> bool:
    """Whether whole parts of the cell's name, in order, spell the text."""
    return f"/{text.strip('/')}/" in f"/{cell.name}/"


def run_cell(cell: Cell, setting: Setting, out: Path) -> Path:
    """Measure a cell, line by line, unless its file is whole already.

    Args:
        cell: what to measure.
        setting: how; its config is replaced by the cell's, and a choice of masks that it does
            not make, or that means nothing to the method, by the method's.
        out: where the files are.

    Raises:
        PrismError: the cell cannot be run as asked.
    """
    own = METHODS[cell.method].masks
    masks = None if own is None else setting.masks or own
    setting = replace(setting, config=cell.config(), masks=masks)
    path = cell.path(out, setting)
    if path.exists() and is_whole(path):
        return path
    out.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        lines.write(json.dumps(_header(cell, setting)) + "\n")
        for measured in METHODS[cell.method].measure(setting):
            lines.write(json.dumps(measured.line) + "\n")
            lines.flush()
            measured.grid.save(path.with_suffix(".png"))
            print(f"{cell.name}: {_summary(measured.line)}", file=sys.stderr, flush=True)
    return path


def is_whole(path: Path) -> bool:
    """Whether the last line of a cell's file is that of its last round."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return bool(lines[-1]["rounds"] == lines[0]["total_rounds"] and len(lines) > 1)
    except (ValueError, KeyError, IndexError):
        return False


def _header(cell: Cell, setting: Setting) -> dict[str, Any]:
    command = ["python", "-m", "benchmarks.reproduce", "--size", cell.size, "--only"]
    command += [f"{cell.data}/{cell.partition}/{cell.method}", "--features", setting.features]
    command += ["--every", str(setting.every), "--samples", str(setting.samples)]
    on_cpu = setting.device.type == "cpu"
    command += ["--threads", str(torch.get_num_threads())] if on_cpu else ["--device", "cuda"]
    if setting.masks not in (None, METHODS[cell.method].masks):
        command += ["--masks", str(setting.masks)]
    command += [f"--set={change}" for change in cell.changes]
    if cell.data != "digits":
        command += ["--data-dir", "data"]
    return {
        "cell": cell.name,
        "group": cell.group,
        "method": cell.method,
        "seed": cell.seed,
        "changes": list(cell.changes),
        "total_rounds": setting.config.rounds,
        "clients": setting.config.data.clients,
        "features": setting.features,
        "hardware": hardware(setting.device),
        "torch": torch.__version__,
        "command": shlex.join(command),
        "config": setting.config.to_toml(),
    }


def hardware(device: torch.device) -> str:
    """The class of hardware, such as "AMD EPYC, 2 CPU threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = "CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}"


def _summary(line: Mapping[str, Any]) -> str:
    distance = next(f"{key} {value:.4g}" for key, value in line.items() if key.startswith("F"))
    return f"round {line['rounds']}, {distance}, {line['up_bytes']:,} bytes up"


def main(
    size: Annotated[str, typer.Option(help="cpu (hours on two cores) or paper (a GPU).")] = "cpu",
    data_dir: Annotated[Path | None, typer.Option(help="Where the data sets lie.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Parts of cell names, as --list shows them, such as mnist/shards."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each, from 1.")] = 1,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For every cell.")
    ] = None,
    features: Annotated[str, typer.Option(help="lenet, small or inception.")] = "lenet",
    every: Annotated[int, typer.Option(min=1, help="Rounds between evaluations.")] = 5,
    samples: Annotated[int, typer.Option(min=10, help="Generated images an evaluation.")] = 5000,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 lets torch choose.")] = 0,
    masks: Annotated[
        Masks | None,
        typer.Option(help="Judge exported masks or fresh ones; by default as each row says."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where cells are kept.")] = Path("runs/reproduce"),
    docs: Annotated[Path, typer.Option(help="Where tables and curves go.")] = Path("docs/results"),
    show: Annotated[bool, typer.Option("--list", help="Only name the cells.")] = False,
    tables: Annotated[bool, typer.Option("--tables", help="Run nothing; make tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what cells gave.")] = False,
) -> None:
    """Measure the grid's cells that are not there yet, then make tables and curves of all."""
    if threads:
        torch.set_num_threads(threads)
    try:
        if size not in SIZES:
            raise ConfigError(f"--size {size}: choose {' or '.join(SIZES)}")
        cells = list(grid(size, seeds, tuple(only or ()), tuple(override or ())))
        if not cells:
            raise ConfigError("--only picks no cell; --list shows their names")
        if show:
            print("\n".join(cell.name for cell in cells))
            return
        if not tables:
            on = torch.device(device)
            judging = (features, every, samples, on)
            setting = Setting(cells[0].config(), data_dir, *judging, masks=masks)
            for cell in cells:
                path = run_cell(cell, setting, out)
                if as_json:
                    print(path.read_text(encoding="utf-8").splitlines()[-1], flush=True)
        for path in write_report(sorted(out.glob("*.jsonl")), docs, is_whole):
            print(os.path.relpath(path), file=sys.stderr)
    except PrismError as error:
        raise SystemExit(f"{sys.argv[0]}: {error}") from error


if __name__ == "__main__":
    typer.run(main)
