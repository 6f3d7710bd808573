"""How a run is judged whose masks are sampled: a fresh mask for each batch, or exported masks.

The released code of PRISM draws every batch of the images that it judges by a mask of its own,
sampled from theta, and normalises it by its own statistics. So it judges a mixture of models,
while a run ends with one mask and stored statistics. Both are measured: `FreshMasks` are the
mixture, and `over_masks` says what single masks give.
"""

from __future__ import annotations

from statistics import mean, stdev
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import RunConfig
from common.data import to_pixels
from common.errors import ConfigError
from common.model.architecture import Architecture
from common.model.export import build_model, learned_classes
from common.model.frozen import frozen_weights
from common.model.generator import balanced_labels, generate
from common.quality import Evaluator
from common.state import PROB_ONE, sigma
from server.average import ModelSource

MASKS: Final = 8
"""Exported masks that `over_masks` compares."""


class FreshMasks:
    """Draws each batch by a mask of its own and normalises it by itself, as the released code does.

    It is a `common.model.sampler.Sampler`. Batches are as large as in training.

    Args:
        config: the run.
        source: what a model would be exported from.
        device: where to draw; the masks and the noise are the same everywhere.
    """

    def __init__(self, config: RunConfig, source: ModelSource, device: torch.device) -> None:
        self.class_names = config.classes
        self.learned = learned_classes(len(config.classes), source.unseen)
        self._architecture = Architecture.of(config)
        self._batch = config.train.batch_size
        self._device = device
        self._frozen = torch.from_numpy(frozen_weights(self._architecture, config.seed)).to(device)
        self._theta = torch.from_numpy(sigma(source.state.scores).astype(np.float32) / PROB_ONE)

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, labels: NDArray[np.int64] | None = None) -> Tensor:
        """See `Sampler.sample`."""
        asked = balanced_labels(self.learned, n) if labels is None else torch.from_numpy(labels)
        # Of too few images statistics say little, so the last batch is whole like all others.
        whole = -(-n // self._batch) * self._batch
        drawn = None if asked is None else asked[torch.arange(whole) % n]
        noise = torch.Generator().manual_seed(seed)
        images = []
        for start in range(0, whole, self._batch):
            z = torch.randn(self._batch, self._architecture.latent, generator=noise)
            mask = torch.rand(self._theta.shape, generator=noise) < self._theta
            chosen = None if drawn is None else drawn[start : start + self._batch]
            images.append(self._draw(z, mask, chosen))
        return torch.cat(images)[:n]

    def _draw(self, z: Tensor, mask: Tensor, labels: Tensor | None) -> Tensor:
        weights = self._frozen * mask.to(self._device)
        labels = None if labels is None else labels.to(self._device)
        batch = generate(self._architecture, z.to(self._device), weights, labels=labels)
        return to_pixels(batch).cpu()


def check_has_masks(config: RunConfig) -> None:
    """Refuse to judge fresh masks of a run that has none, or whose images follow codes of cells.

    Raises:
        ConfigError: it is such a run.
    """
    if config.method == "fedavg":
        raise ConfigError('method = "fedavg" has no masks: leave out --masks fresh')
    if config.uses_cells:
        raise ConfigError('data.labels = "cells" is not judged by fresh masks: leave that out')


def over_masks(
    judge: Evaluator, config: RunConfig, source: ModelSource, samples: int
) -> dict[str, float]:
    """Mean and standard deviation of the distance over MASKS masks that could be exported.

    Args:
        judge: whose distance is taken.
        config: the run, whose masks are sampled.
        source: what they are sampled from.
        samples: images of each.
    """
    distances = []
    for draw in range(MASKS):
        model = build_model(config, source.state, source.unseen, source.cells, draw)
        distances.append(judge.distance(judge.draw(model, samples)[0]))
    name = f"{judge.distance_name} of {MASKS} exported masks"
    return {f"{name}, mean": mean(distances), f"{name}, spread": stdev(distances)}
