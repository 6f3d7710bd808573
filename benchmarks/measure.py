"""What every measurement of quality against bytes shares: its setting, its judge, its lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from common.config import RunConfig, load_config
from common.data import ImageSource, open_source, partition, split_by
from common.errors import PrismError
from common.model.export import ExportedModel
from common.model.grid import PER_CLASS, UNLABELLED, Grid, model_grid
from common.model.sampler import Sampler
from common.quality import Evaluator, evaluator_of, score_model

REAL_IMAGES: Final = 5000
"""At most so many real images are compared with generated ones."""
CPU: Final = torch.device("cpu")
Masks = Literal["exported", "fresh"]
"""Whether one exported mask is judged, or one fresh mask for each batch: `benchmarks.masks`."""


@dataclass(frozen=True)
class Setting:
    """One run and how it is judged.

    Attributes:
        config: the run.
        data_dir: where its data set lies.
        features: "lenet", "small" or "inception".
        every: rounds between evaluations.
        samples: generated images an evaluation.
        device: where to train.
        cache: where trained classifiers are kept.
        accuracy_score: whether to take it after the last round of a run that draws classes.
        masks: which are judged; by default those of models as they are exported.
    """

    config: RunConfig
    data_dir: Path | None = None
    features: str = "lenet"
    every: int = 10
    samples: int = 2000
    device: torch.device = CPU
    cache: Path | None = Path("build/cache")
    accuracy_score: bool = True
    masks: Masks | None = None

    def source(self, *, train: bool = True) -> ImageSource:
        """The training part of the run's data set, or its test part."""
        return open_source(self.config.data.name, self.data_dir, train)

    def evaluator(self) -> Evaluator:
        """Judges against up to REAL_IMAGES training images, evenly spaced over the set.

        Where clients hold different classes and these are drawn, it tells the clients apart.
        """
        run, source = self.config, self.source()
        apart = run.classes and run.data.partition != "iid"
        parts = partition(split_by(source, run), run.data, run.seed) if apart else None
        return evaluator_of(
            source,
            REAL_IMAGES,
            run.model.image_size,
            run.channels,
            self.features,
            classes=run.classes,
            parts=parts,
            cache=self.cache,
            device=self.device,
        )

    def judged(
        self, judge: Evaluator, model: Sampler, rounds: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """The images of a model after so many rounds, and how good they are as part of a line."""
        images, intended = judge.draw(model, self.samples)
        line = quality_of(judge, images, intended)
        if self.accuracy_score and model.class_names and rounds == self.config.rounds:
            line["accuracy_score"] = score_model(model, self.source(train=False))
        return images, line

    def due(self, rounds: int) -> bool:
        """Whether to evaluate after so many rounds."""
        return rounds % self.every == 0 or rounds == self.config.rounds


def grid_of(model: Sampler) -> Grid:
    """A picture of what a model draws, with a row for each class that it learned."""
    if isinstance(model, ExportedModel):
        return model_grid(model)
    if not model.class_names:
        return Grid.square(model.sample(UNLABELLED))
    labels = np.tile(np.array(model.learned, dtype=np.int64), PER_CLASS)
    return Grid.by_class(model.sample(len(labels), labels=labels), labels, model.class_names)


@dataclass(frozen=True)
class Measured:
    """One evaluation.

    Attributes:
        line: ready for JSON; byte counts are totals over all clients and rounds so far.
        images: (n, C, S, S) uint8, what was judged.
        grid: what a person is shown of it.
    """

    line: dict[str, Any]
    images: Tensor
    grid: Grid


class Meter:
    """Adds up what a federation moves.

    Args:
        clients: in every round.
        parameters: of the generator, which bits are counted against.
    """

    def __init__(self, clients: int, parameters: int) -> None:
        self._bits = 8 / clients / parameters
        self._up = self._down = self._last_up = self._last_down = 0
        self._seconds = 0.0

    def add(self, up: int, down: int, seconds: float) -> None:
        """A round: payload bytes of all clients, and how long it took."""
        self._last_up, self._last_down = up, down
        self._up += up
        self._down += down
        self._seconds += seconds

    def line(self, rounds: int) -> dict[str, Any]:
        """The part of a line that every method has: totals, and the last round's bits."""
        return {
            "rounds": rounds,
            "up_bytes": self._up,
            "down_bytes": self._down,
            "bits_up": self._last_up * self._bits,
            "bits_down": self._last_down * self._bits,
            "seconds": self._seconds,
        }


def quality_of(
    judge: Evaluator, images: Tensor, intended: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """The part of a line that says how good images are; `Evaluator.evaluate`, figures alone."""
    quality = judge.evaluate(images, intended).as_dict()
    return {name: value for name, value in quality.items() if not isinstance(value, tuple)}


def command(measure: Callable[[Setting], Iterator[Measured]], summary: str) -> Callable[..., None]:
    """A command line that prints one JSON line per evaluation of a measurement."""

    def main(
        config: Annotated[Path, typer.Argument(help="Run config.")],
        override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE.")] = None,
        data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
        features: Annotated[str, typer.Option(help="lenet, small or inception.")] = "lenet",
        every: Annotated[int, typer.Option(min=1, help="Rounds between evaluations.")] = 10,
        samples: Annotated[int, typer.Option(help="Generated images an evaluation.")] = 2000,
        picture: Annotated[Path | None, typer.Option(help="PNG of the last samples.")] = None,
        device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
        threads: Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")] = 0,
        cache: Annotated[Path, typer.Option(help="Where classifiers are kept.")] = Path(
            "build/cache"
        ),
        accuracy_score: Annotated[
            bool, typer.Option(help="Take it after the last round of a run that draws classes.")
        ] = True,
        masks: Annotated[
            Masks | None,
            typer.Option(help="Judge the exported mask, or a fresh one a batch as published."),
        ] = None,
        as_json: Annotated[  # noqa: ARG001 - so that every benchmark takes it
            bool, typer.Option("--json", help="One JSON line per evaluation, as without.")
        ] = False,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        try:
            run = load_config(config, override or ())
            on = torch.device(device)
            judging = (features, every, samples, on, cache, accuracy_score, masks)
            setting = Setting(run, data_dir, *judging)
            for measured in measure(setting):
                print(json.dumps(measured.line), flush=True)
                if picture is not None:
                    measured.grid.save(picture)
        except PrismError as error:
            raise SystemExit(f"{sys.argv[0]}: {error}") from error

    main.__doc__ = summary
    return main
