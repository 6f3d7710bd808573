"""What `prism sample` draws: which classes, how many of each, or steps from noise to noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import ConfigError
from common.model.export import ExportedModel
from common.model.grid import PER_CLASS, UNLABELLED, Grid


@dataclass(frozen=True)
class Wanted:
    """What was asked for; at most one of the three numbers.

    Attributes:
        classes: names or numbers; empty for all that the model has learned.
        n: images in all, the classes in turn.
        per_class: images of each class.
        steps: from one noise to another, for each class the same.

    Raises:
        ConfigError: more than one of the numbers is given.
    """

    classes: tuple[str, ...] = ()
    n: int | None = None
    per_class: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        options = {"-n": self.n, "--per-class": self.per_class, "--interpolate": self.steps}
        given = [name for name, number in options.items() if number is not None]
        if len(given) > 1:
            raise ConfigError(f"{given[0]} and {given[1]} both say how many: give one of them")


@dataclass(frozen=True)
class Drawn:
    """Images of a model.

    Attributes:
        images: (n, C, S, S) uint8.
        labels: (n,) the class of each, or None where the model draws no classes.
        class_names: what the labels 0, 1, ... are called.
        in_order: whether neighbours of a class belong side by side.
    """

    images: Tensor
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    in_order: bool = False

    def grid(self) -> Grid:
        """A row for each class; without classes, one row of steps, or a square."""
        if self.labels is not None:
            return Grid.by_class(self.images, self.labels, self.class_names)
        return Grid.rows([self.images]) if self.in_order else Grid.square(self.images)


def draw(model: ExportedModel, wanted: Wanted, seed: int = 0) -> Drawn:
    """Draw what is wanted; equal arguments give equal images.

    Raises:
        ConfigError: the model has no such class, or none at all.
    """
    classes = _classes(model, wanted)
    if wanted.steps is not None:
        rows = max(1, len(classes))
        noise = interpolation(model.architecture.latent, wanted.steps, seed).repeat(rows, 1)
        labels = np.repeat(classes, wanted.steps) if len(classes) else None
        # Steps change the noise alone, so all are of one class each, or of one cell.
        steady = replace(model, cells=model.cells.largest)
        images = steady.sample(len(noise), labels=labels, noise=noise)
        return Drawn(images, labels, model.class_names, in_order=True)
    if len(classes):
        n = wanted.n or (wanted.per_class or PER_CLASS) * len(classes)
        labels = np.resize(classes, n)
        return Drawn(model.sample(n, seed, labels), labels, model.class_names)
    if wanted.per_class is not None:
        raise ConfigError("--per-class needs a model that draws classes: give -n")
    return Drawn(model.sample(wanted.n or UNLABELLED, seed), None, ())


def notes(model: ExportedModel, wanted: Wanted, drawn: Drawn) -> Iterator[str]:
    """What to tell about classes that no client taught, a line each: drawn, or left out."""
    if drawn.labels is None:
        return
    shown = set(drawn.labels.tolist())
    untaught = [model.class_names[label] for label in model.unseen if label in shown]
    left_out = [model.class_names[label] for label in model.unseen if label not in shown]
    if untaught:
        yield f"no client held enough images of {', '.join(untaught)}: these are untrained"
    if left_out and not wanted.classes:
        yield f"left out, because no client held enough images: {', '.join(left_out)}"


def interpolation(latent: int, steps: int, seed: int) -> Tensor:
    """(steps, latent) float32: from one noise vector to another along the arc between them.

    On a straight line the vectors in between would be shorter than noise ever is (White,
    arXiv 1609.04468).
    """
    ends = torch.randn(2, latent, generator=torch.Generator().manual_seed(seed))
    lengths = ends.norm(dim=1, keepdim=True)
    start, end = ends / lengths
    angle = torch.arccos((start @ end).clamp(-1, 1))
    at = torch.linspace(0, 1, steps)[:, None]
    if angle.sin() < 1e-3:
        # There is no arc between vectors of one direction, and no single one between opposites.
        return torch.lerp(ends[0], ends[1], at)
    arc: Tensor = (((1 - at) * angle).sin() * start + (at * angle).sin() * end) / angle.sin()
    return arc * torch.lerp(lengths[0], lengths[1], at)


def _classes(model: ExportedModel, wanted: Wanted) -> NDArray[np.int64]:
    """(k,) labels of what is wanted, each once; none where the model draws no classes."""
    labels = dict.fromkeys(model.label_of(name) for name in wanted.classes)
    return np.array([*labels] or model.learned, dtype=np.int64)
