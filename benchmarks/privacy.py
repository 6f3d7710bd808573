"""Quality under privacy: one line a setting, taken up again where it stopped.

    python -m benchmarks.privacy configs/mnist.toml --data-dir data --set data.clients=10 \\
        --set encoder.pool=4 --out privacy.jsonl

For each partition: the run without a mechanism, then `moments` at each epsilon, record-level for
the whole run; then the same moments of the same images pooled in one place, at the same epsilon.
Runs whose line is in --out already are not run again.

Beside the Frechet distance stands `accuracy`: of a classifier that was trained on generated
images alone, tested on real test images: the accuracy score of a run that draws classes. Where
labels are ignored, a classifier of real images labels the generated ones; that is a measurement
and no part of any release.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import Setting
from benchmarks.simulate import measure
from common.config import RunConfig, load_config
from common.data import load_images, open_source, to_unit
from common.errors import PrismError
from common.quality.lenet import Lenet, train_lenet

PARTITIONS = ("iid", "shards", "pooled")
EPSILONS = (10.0, 1.0, 0.2)


@dataclass(frozen=True)
class Row:
    """One setting: "iid" or "shards" among the clients, or "pooled"; epsilon None is none."""

    partition: str
    epsilon: float | None

    @property
    def changes(self) -> list[str]:
        """What it changes in the config."""
        if self.partition == "pooled":
            # In one place there is nothing to code: what was trained is the next state itself.
            changes = ['data.partition="iid"', "data.clients=1", "alpha=1", "mada.enabled=false"]
            changes += ['codec.down="keyframe"']
        else:
            changes = [f'data.partition="{self.partition}"']
        if self.epsilon is not None:
            changes += ['privacy.mechanism="moments"', f"privacy.epsilon={self.epsilon}"]
        return changes


class Judge:
    """Labels generated images, trains classifiers on them and tests these on real images."""

    def __init__(self, config: RunConfig, data_dir: Path | None, cache: Path | None) -> None:
        train, test = (
            open_source(config.data.name, data_dir, train=part) for part in (True, False)
        )
        size, channels = config.model.image_size, config.channels
        if train.labels is None or test.labels is None:
            raise PrismError("this measurement needs labelled images")
        images = load_images(train, np.arange(len(train)), size, channels)
        self._teacher = train_lenet(images, train.labels, 1, cache)
        self._images = load_images(test, np.arange(len(test)), size, channels)
        self._labels = test.labels

    def accuracy(self, generated: Tensor) -> float:
        """Accuracy on real test images of a classifier of the generated ones."""
        labels = _classes(self._teacher, generated)
        if len(np.unique(labels)) < 2:
            return float(np.mean(self._labels == labels[0]))
        student = train_lenet(generated, labels, 1)
        return float(np.mean(_classes(student, self._images) == self._labels))


@torch.no_grad()
def _classes(model: Lenet, images: Tensor) -> np.ndarray:
    logits = [model(to_unit(batch)) for batch in torch.split(images, 1000)]
    return np.asarray(torch.cat(logits).argmax(1).numpy(), dtype=np.int64)


def measured_row(row: Row, setting: Setting) -> dict[str, Any]:
    """One line, from the end of a whole run."""
    config = setting.config
    (last,) = measure(replace(setting, every=config.rounds))
    line = dict(last.line)
    accuracy = line.pop("accuracy_score", None)
    if accuracy is None:
        accuracy = Judge(config, setting.data_dir, setting.cache).accuracy(last.images)
    return {
        "run": config.run_id().hex(),
        "partition": row.partition,
        "epsilon": row.epsilon,
        "delta": None if row.epsilon is None else config.privacy.delta,
        "clients": config.data.clients,
        "features": setting.features,
        "samples": setting.samples,
        **line,
        "accuracy": accuracy,
    }


def main(
    path: Annotated[Path, typer.Argument(metavar="CONFIG", help="Run config.")],
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    partition: Annotated[list[str] | None, typer.Option(help="By default all three.")] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="By default 10, 1, 0.2; 0 stands for none.")
    ] = None,
    features: Annotated[str, typer.Option(help="lenet, small or inception.")] = "lenet",
    samples: Annotated[int, typer.Option(help="Generated images that are judged.")] = 5000,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")] = 0,
    cache: Annotated[Path, typer.Option(help="Where classifiers are kept.")] = Path("build/cache"),
    out: Annotated[Path | None, typer.Option(help="JSON lines; read first, then added to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, no table.")] = False,
) -> None:
    """Measure quality under privacy."""
    if threads:
        torch.set_num_threads(threads)
    wanted = [None if e == 0 else e for e in epsilon] if epsilon else [None, *EPSILONS]
    rows = [Row(p, e) for p in partition or PARTITIONS for e in wanted]
    kept = out.read_text().splitlines() if out is not None and out.exists() else []
    there = {
        line["run"]: line
        for line in map(json.loads, kept)
        if (line["features"], line["samples"]) == (features, samples)
    }
    measured = []
    try:
        # All of them before the first is run, which takes minutes.
        configs = [load_config(path, [*(override or []), *row.changes]) for row in rows]
        for row, config in zip(rows, configs, strict=True):
            line = there.get(config.run_id().hex())
            if line is None:
                setting = Setting(config, data_dir, features, samples=samples, cache=cache)
                line = measured_row(row, replace(setting, device=torch.device(device)))
                if out is not None:
                    with out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
            measured.append(line)
            if as_json:
                print(json.dumps(line), flush=True)
    except PrismError as error:
        raise SystemExit(f"{sys.argv[0]}: {error}") from error
    if not as_json:
        distance = next((k for line in measured for k in line if k.startswith(("FD", "FID"))), "FD")
        table = Table("partition", "epsilon", distance, "coverage", "accuracy", box=None)
        for line in measured:
            table.add_row(
                line["partition"],
                "none" if line["epsilon"] is None else f"{line['epsilon']:g}",
                *(f"{line[key]:.3g}" for key in (distance, "coverage", "accuracy")),
            )
        Console().print(table)


if __name__ == "__main__":
    typer.run(main)
