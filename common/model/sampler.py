"""What evaluations ask of a model, whatever it is made of."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Sampler(Protocol):
    """Draws images on request, of a class each where it has classes, as an `ExportedModel` does."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the labels 0, 1, ... are called; none where it draws no classes."""

    @property
    def learned(self) -> tuple[int, ...]:
        """Labels that it was taught, ascending; none where it draws no classes."""

    def sample(self, n: int, seed: int = 0, labels: NDArray[np.int64] | None = None) -> Tensor:
        """Draw images; equal arguments give equal images.

        Args:
            n: how many.
            seed: of the noise.
            labels: (n,) what to draw; by default the learned classes in turn, if there are any.

        Returns:
            (n, channels, size, size) uint8 on the CPU.
        """
