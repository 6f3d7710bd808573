"""One client's local training: (global state, private moments, seed) to local scores.

No network and no files. The optimiser and the moving averages live on between rounds; the
scores start from the global state each round (Algorithm 1 of the paper). Other methods are in
files of their own, which `client.methods` lists.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.loss import (
    Kind,
    Moments,
    MovingAverages,
    feature_moments,
    normalised_moments,
    unbiased,
)
from client.weighted import weighted_moments
from common.cells import CellTable
from common.config import RunConfig
from common.encoders import FeatureEncoder
from common.errors import PrivacyError
from common.model.architecture import Architecture
from common.model.frozen import frozen_weights
from common.model.generator import generate
from common.model.masked import sample_mask
from common.sections import TrainConfig
from common.seeding import derive_seed
from common.state import SCORE_UNIT, GlobalState, Values

Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class LocalResult:
    """What one round of local training gave.

    Attributes:
        values: (d,) int16, the local scores on the shared grid of 1/2048 logit; or (d,)
            float32, the local weights, where the method trains weights.
        loss: mean generator loss over the steps.
        seconds: of training.
    """

    values: Values
    loss: float
    seconds: float


class Trainer(ABC):
    """Local training by feature matching; a method says what is trained.

    Methods differ in three things: what the round's state sets, how a step's effective
    weights come about, and what of the trained values is the round's result.

    Args:
        config: the run.
        encoder: the frozen encoder, on the device.
        real: the private moments to match, on the device; a row for each class or cell of this
            client where these are used, else one.
        device: where to train.

    Raises:
        PrivacyError: the moments are not of the kind that the mechanism releases.
        ValueError: they are of classes or cells where the run has none, or the reverse.
    """

    def __init__(
        self, config: RunConfig, encoder: FeatureEncoder, real: Moments, device: torch.device
    ) -> None:
        if real.kind is not Kind.of(config):
            raise PrivacyError("training would match other moments than privacy.mechanism releases")
        if bool(real.classes) != bool(config.classes):
            raise ValueError("moments of classes are for a run that uses labels, and for no other")
        if bool(real.cells) != config.uses_cells:
            raise ValueError("moments of cells are for a run that uses cells, and for no other")
        self._config = config
        self._half = config.train.precision == "bfloat16"
        self._encoder = encoder.rounded() if self._half else encoder
        self._real = real
        self._device = device
        self._architecture = Architecture.of(config)
        self._trained = torch.zeros(self._architecture.dimension, device=device, requires_grad=True)
        self._optimiser = torch.optim.Adam(
            [self._trained], lr=config.train.learning_rate, betas=(0.5, 0.999), fused=True
        )
        groups, features = real.mean.shape
        self._averages = MovingAverages(
            groups,
            features,
            config.train.moving_average_rate,
            device,
            config.train.moving_average_leak,
            config.train.moving_average_loss,
        )
        self._labels = torch.tensor(real.classes, device=device) if real.classes else None
        self._codes = torch.from_numpy(real.cells.codes).to(device) if real.cells else None

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels that are trained on; none where labels are ignored."""
        return self._real.classes

    @property
    def cells(self) -> CellTable:
        """Cells that are trained on; none where the run has none."""
        return self._real.cells

    @abstractmethod
    def _start(self, state: GlobalState) -> NDArray[np.float32]:
        """(d,) what training starts from in a round."""

    @abstractmethod
    def _effective_weights(self, noise: torch.Generator) -> Tensor:
        """(d,) weights of one step, differentiable in what is trained."""

    @abstractmethod
    def _result(self) -> Values:
        """(d,) what the round's training gave, as updates are made of it."""

    def train(
        self, state: GlobalState, client: str, progress: Progress | None = None
    ) -> LocalResult:
        """Run the config's local steps from the global state.

        Args:
            state: what the round starts from.
            client: this client's name; with seed and round it names the noise stream.
            progress: called after each step with (step, loss).
        """
        train = self._config.train
        started = time.monotonic()
        noise = self._stream("local-noise", state.round, client)
        if train.moving_average_start == "uniform" and not self._averages.moved:
            self._averages.scatter(self._stream("moving-average-start", client))
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(train, state.round, self._config.schedule_length)
        with torch.no_grad():
            self._trained.copy_(torch.from_numpy(self._start(state)))

        total = 0.0
        for step in range(train.local_steps):
            loss = self._step(noise)
            total += loss
            if progress is not None:
                progress(step + 1, loss)
        return LocalResult(self._result(), total / train.local_steps, time.monotonic() - started)

    def _step(self, noise: torch.Generator) -> float:
        groups = self._draw_groups(noise)
        each = self._config.train.batch_size // len(groups)
        labels, codes = (
            None if of is None else of[groups].repeat_interleave(each, dim=0)
            for of in (self._labels, self._codes)
        )
        z = self._random(torch.randn, noise, each * len(groups), self._architecture.latent)
        weights = self._effective_weights(noise)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            images = generate(self._architecture, z, weights, labels=labels, codes=codes)
        features = self._encoder(images.float())
        generated = self._moments(features, len(groups))
        loss = self._averages.step(self._real, generated, groups)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return float(loss.detach())

    def _moments(self, features: Sequence[Tensor], groups: int) -> Moments:
        """A generated batch's moments, of the kind that the real ones are."""
        if self._real.kind is Kind.NORMALISED:
            return normalised_moments(features)
        if self._real.scales is not None:
            return Moments(*weighted_moments(features, self._real.scales, groups))
        generated = feature_moments(features, groups)
        grouped = self.classes or self.cells
        return unbiased(generated, len(features[0]) // groups) if grouped else generated

    def _draw_groups(self, noise: torch.Generator) -> list[int]:
        """Groups of the next batch, ascending: it has a block of each, of the same length.

        All classes or cells of this client if `train.class_batch` images of each fit into a
        batch, else as many as fit, drawn anew each step. Only its own: batch statistics are then
        those of images that the loss sees.
        """
        train = self._config.train
        groups = list(range(len(self._real.mean)))
        most = max(1, train.batch_size // train.class_batch)
        if len(groups) > most:
            drawn = torch.randperm(len(groups), generator=noise, device=self._device)[:most]
            groups = sorted(drawn.tolist())
        return groups

    def _stream(self, purpose: str, *ids: int | str) -> torch.Generator:
        stream = torch.Generator(self._device)
        return stream.manual_seed(derive_seed(self._config.seed, purpose, *ids))

    def _random(self, draw: Any, noise: torch.Generator, *shape: int) -> Tensor:
        drawn: Tensor = draw(*shape, generator=noise, device=self._device)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart: both optimisers and the moving averages."""
        return {
            "optimiser": self._optimiser.state_dict(),
            "averages": self._averages.optimiser.state_dict(),
            "classes": list(self._real.classes),
            "cells": list(self._real.cells.content),
            "mean": torch.stack(self._averages.mean).detach(),
            "variance": torch.stack(self._averages.variance).detach(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it belongs to other classes, cells or features than this trainer's.
        """
        if saved["classes"] != list(self._real.classes):
            raise ValueError("the moving averages are of other classes")
        if saved["cells"] != list(self._real.cells.content):
            raise ValueError("the moving averages are of other cells")
        for kept in (saved["mean"], saved["variance"]):
            if kept.shape != self._real.mean.shape:
                raise ValueError("the moving averages are of other features")
        self._optimiser.load_state_dict(saved["optimiser"])
        self._averages.optimiser.load_state_dict(saved["averages"])
        with torch.no_grad():
            for averages, kept in (
                (self._averages.mean, saved["mean"]),
                (self._averages.variance, saved["variance"]),
            ):
                for average, row in zip(averages, kept, strict=True):
                    average.copy_(row)


class PrismTrainer(Trainer):
    """Trains the scores of masks over frozen weights, with a straight-through estimator."""

    def __init__(
        self, config: RunConfig, encoder: FeatureEncoder, real: Moments, device: torch.device
    ) -> None:
        super().__init__(config, encoder, real, device)
        frozen = frozen_weights(self._architecture, config.seed)
        self._frozen = torch.from_numpy(frozen).to(device)
        self._spread = 1.0

    def _start(self, state: GlobalState) -> NDArray[np.float32]:
        self._spread = draw_spread(self._config.train, state.round, self._config.schedule_length)
        return state.scores.astype(np.float32) / np.float32(SCORE_UNIT)

    def _effective_weights(self, noise: torch.Generator) -> Tensor:
        uniform = self._random(torch.rand, noise, self._architecture.dimension)
        uniform = uniform.sub_(0.5).mul_(self._spread).add_(0.5)
        scaled = self._config.train.straight_through == "scaled"
        return self._frozen * sample_mask(self._trained, uniform, scaled=scaled)

    def _result(self) -> Values:
        grid = (self._trained.detach() * SCORE_UNIT).round().clamp(-32768, 32767)
        scores: NDArray[np.int16] = grid.to(torch.int16).cpu().numpy()
        return scores


def draw_spread(train: TrainConfig, round_: int, rounds: int) -> float:
    """How far from 1/2 the draws of a round's training masks may lie, in halves.

    At 1 a mask is sampled from theta; at 0 it is [theta > 1/2], as an exported mask is. In
    between it is sampled from theta stretched around 1/2, so that by the last of several rounds
    what training matches is what one mask gives and not the mean over many.
    """
    return max(0.0, 1 - train.annealing * _progress(round_, rounds))


def learning_rate(train: TrainConfig, round_: int, rounds: int) -> float:
    """The learning rate in a round: a half cosine from the first round's to the last's."""
    share = (1 + math.cos(math.pi * _progress(round_, rounds))) / 2
    return train.learning_rate_final + (train.learning_rate - train.learning_rate_final) * share


def _progress(round_: int, rounds: int) -> float:
    """How far a schedule over so many rounds is in this one; 1 once it has ended."""
    return min(1.0, round_ / max(rounds - 1, 1))
