"""Federated averaging of weights (McMahan et al., arXiv 1602.05629), on the client.

The same generator, loss and steps as PRISM; but the weights themselves are trained, from the
frozen ones on. It shows what quality masks could reach, and the bytes that they save.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.trainer import Trainer
from common.state import GlobalState, Values


class FedAvgTrainer(Trainer):
    """Trains all weights with Adam."""

    def _start(self, state: GlobalState) -> NDArray[np.float32]:
        # A state is read-only, which torch cannot express.
        return state.weights.copy()

    def _effective_weights(self, noise: torch.Generator) -> Tensor:  # noqa: ARG002
        return self._trained

    def _result(self) -> Values:
        weights: NDArray[np.float32] = self._trained.detach().cpu().numpy().copy()
        return weights
