"""One client's local training: (global state, private moments, seed) to local scores.

No network and no files. The optimiser and the moving averages live on between rounds; the
scores start from the global state each round (Algorithm 1 of the paper).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.loss import Moments, MovingAverages, feature_moments
from common.config import RunConfig, TrainConfig
from common.model.architecture import Architecture
from common.model.frozen import frozen_weights
from common.model.generator import generate
from common.model.masked import sample_mask
from common.seeding import derive_seed
from common.state import SCORE_UNIT, GlobalState, Scores

Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class LocalResult:
    """What one round of local training gave.

    Attributes:
        scores: (d,) int16, the local scores on the shared grid of 1/2048 logit.
        loss: mean generator loss over the steps.
        seconds: of training.
    """

    scores: Scores
    loss: float
    seconds: float


class PrismTrainer:
    """Trains scores by feature matching with a straight-through estimator."""

    def __init__(
        self, config: RunConfig, encoder: nn.Module, real: Moments, device: torch.device
    ) -> None:
        self._config = config
        self._encoder = encoder
        self._real = real
        self._device = device
        self._architecture = Architecture.of(config.model)
        frozen = frozen_weights(self._architecture, config.seed)
        self._frozen = torch.from_numpy(frozen).to(device)
        self._scores = torch.zeros(self._architecture.dimension, device=device, requires_grad=True)
        self._optimiser = torch.optim.Adam(
            [self._scores], lr=config.train.learning_rate, betas=(0.5, 0.999)
        )
        self._averages = MovingAverages(real.mean.numel(), config.train.moving_average_rate, device)

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
        noise = torch.Generator(self._device)
        noise.manual_seed(derive_seed(self._config.seed, "local-noise", state.round, client))
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(train, state.round, self._config.rounds)
        with torch.no_grad():
            global_scores = torch.from_numpy(state.scores.astype(np.float32) / SCORE_UNIT)
            self._scores.copy_(global_scores)

        total = 0.0
        for step in range(train.local_steps):
            loss = self._step(noise)
            total += loss
            if progress is not None:
                progress(step + 1, loss)
        grid = (self._scores.detach() * SCORE_UNIT).round().clamp(-32768, 32767)
        scores = grid.to(torch.int16).cpu().numpy()
        return LocalResult(scores, total / train.local_steps, time.monotonic() - started)

    def _step(self, noise: torch.Generator) -> float:
        train = self._config.train
        z = self._random(torch.randn, noise, train.batch_size, self._architecture.latent)
        uniform = self._random(torch.rand, noise, self._architecture.dimension)
        mask = sample_mask(self._scores, uniform, scaled=train.straight_through == "scaled")
        images = generate(self._architecture, z, self._frozen * mask)
        loss = self._averages.step(self._real, feature_moments(self._encoder(images)))
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return float(loss.detach())

    def _random(self, draw: Any, noise: torch.Generator, *shape: int) -> Tensor:
        drawn: Tensor = draw(*shape, generator=noise, device=self._device)
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart: both optimisers and the moving averages."""
        return {
            "optimiser": self._optimiser.state_dict(),
            "averages": self._averages.optimiser.state_dict(),
            "mean": self._averages.mean.detach(),
            "variance": self._averages.variance.detach(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._optimiser.load_state_dict(saved["optimiser"])
        self._averages.optimiser.load_state_dict(saved["averages"])
        with torch.no_grad():
            self._averages.mean.copy_(saved["mean"])
            self._averages.variance.copy_(saved["variance"])


def learning_rate(train: TrainConfig, round_: int, rounds: int) -> float:
    """The scores' learning rate in a round: constant, or a half cosine to its final value."""
    if train.learning_rate_final is None:
        return train.learning_rate
    progress = round_ / max(rounds - 1, 1)
    share = (1 + math.cos(math.pi * progress)) / 2
    return train.learning_rate_final + (train.learning_rate - train.learning_rate_final) * share
