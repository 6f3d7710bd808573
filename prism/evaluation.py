"""What `prism evaluate` computes, and how a person reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import load_config
from common.data import ImageSource, open_source, split_by
from common.data import partition as cut
from common.data.partition import Indices
from common.errors import ConfigError
from common.model.export import ExportedModel, load_model
from common.quality import Quality, evaluator_of, score_model


@dataclass(frozen=True)
class Evaluated:
    """One evaluation.

    Attributes:
        figures: flat and ready for JSON.
        quality: where they come from, but for the accuracy score.
        classes: what the classes are called.
    """

    figures: dict[str, Any]
    quality: Quality
    classes: tuple[str, ...]

    def rows(self) -> Iterator[tuple[str, str]]:
        """Names and values as text, with the reason where distances of groups are missing."""
        for name, value in self.figures.items():
            if isinstance(value, tuple):
                text = self._list(value, name)
            else:
                text = f"{value:.4g}" if isinstance(value, float) else str(value)
            yield name.replace("_", " "), text
        for group, of in (("class", self.quality.by_class), ("client", self.quality.by_client)):
            if of is not None and of.distances is None:
                reason = f"needs {of.needed} images of each on both sides, not {of.fewest}"
                yield f"{self.quality.distance_name} by {group}", reason

    def _list(self, values: Sequence[float | None], name: str) -> str:
        """Figures of classes under the classes' names, of clients under their numbers."""
        style = ".3g" if "(" in name else ".0%"
        names: Sequence[str] = self.classes
        if "client" in name or len(names) != len(values):
            names = [str(number) for number in range(len(values))]
        shown = ("-" if value is None else format(value, style) for value in values)
        return ", ".join(f"{of}: {text}" for of, text in zip(names, shown, strict=True))


def evaluate_model(
    path: Path,
    data: str,
    data_dir: Path | None,
    *,
    test: bool,
    features: str,
    samples: int,
    seed: int,
    partition: Path | None,
    accuracy_score: bool | None,
    cache: Path,
    note: Callable[[str], None],
    doing: Callable[[str], None],
) -> Evaluated:
    """Compare a model's images with real ones; arguments as the options of the command.

    Args:
        path: the model.
        data: the real images.
        data_dir: where their files lie.
        test: whether to take their test part.
        features: that distances are taken on.
        samples: images of each side, at most.
        seed: of the generated images.
        partition: the config of a run whose clients are told apart.
        accuracy_score: whether to take it; None for where that is possible.
        cache: where classifiers of real images are kept.
        note: told what a person should know about the figures.
        doing: told what is being done.

    Raises:
        PrismError: the model or the images cannot be read, or do not fit what is asked.
    """
    model = load_model(path)
    source = open_source(data, data_dir, train=not test)
    if model.class_names and source.labels is None:
        note(f"{source.name} has no labels: classes are not judged")
    if partition is not None and test:
        raise ConfigError("--partition cuts the training part: leave out --test")
    parts = None if partition is None else _parts(partition, data, source, model)
    scored = _wants_score(accuracy_score, model, source)
    held_out = open_source(data, data_dir, train=False) if scored else None
    if scored and data.startswith("folder:"):
        note(f"{data} has no test part: the accuracy score is on all of it")
    doing(f"reading {source.name}")
    judge = evaluator_of(
        source,
        samples,
        model.architecture.image_size,
        model.architecture.channels,
        features,
        classes=() if source.labels is None else model.class_names,
        parts=parts,
        cache=cache,
        progress=_steps(doing, "training a classifier of real images"),
    )
    doing(f"judging {samples} generated images")
    quality = judge.evaluate(*judge.draw(model, samples, seed))
    figures = quality.as_dict()
    if held_out is not None:
        doing("drawing images for the accuracy score")
        progress = _steps(doing, "training a classifier of generated images")
        figures["accuracy_score"] = score_model(model, held_out, seed, progress)
    return Evaluated(figures, quality, model.class_names or source.class_names)


def _parts(path: Path, data: str, source: ImageSource, model: ExportedModel) -> list[Indices]:
    """The clients' parts of the real images, as the run cut them."""
    run = load_config(path)
    if not model.class_names or run.classes != model.class_names:
        raise ConfigError(
            f"--partition {path} needs a model that draws classes, and the config of its run"
        )
    if run.data.name != data.partition(":")[0]:
        raise ConfigError(f"--partition {path} cuts {run.data.name}, which is not --data {data}")
    return cut(split_by(source, run), run.data, run.seed)


def _wants_score(asked: bool | None, model: ExportedModel, source: ImageSource) -> bool:
    """Whether to take the accuracy score: by default where that is possible."""
    possible = bool(model.class_names) and source.labels is not None
    if asked and not possible:
        raise ConfigError("--accuracy-score needs a model that draws classes, and labelled images")
    return possible if asked is None else asked


def _steps(doing: Callable[[str], None], what: str) -> Callable[[int, int], None]:
    return lambda done, total: doing(f"{what}: step {done} of {total}")
