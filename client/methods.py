"""Local training by method: a further method is one more line here, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from client.fedavg import FedAvgTrainer
from client.loss import Moments
from client.trainer import PrismTrainer, Trainer
from common.config import RunConfig
from common.encoders import FeatureEncoder

TRAINERS: Final[Mapping[str, type[Trainer]]] = {
    "prism": PrismTrainer,
    "fedpm": PrismTrainer,
    "fedavg": FedAvgTrainer,
}


def make_trainer(
    config: RunConfig, encoder: FeatureEncoder, real: Moments, device: torch.device
) -> Trainer:
    """The trainer of the config's method; arguments as in `Trainer`."""
    return TRAINERS[config.method](config, encoder, real, device)
