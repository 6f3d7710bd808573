"""The private side of a client: its images, its encoder, its device. Nothing here is sent."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.local_images import Indices, LocalImages
from client.loss import Moments
from client.privacy_guard import Guard
from common.config import RunConfig
from common.data import (
    open_source,
    partition,
    split_by,
)
from common.encoders import FeatureEncoder, load_encoder
from common.errors import ConfigError, DataError

log = logging.getLogger("prism.client")


@dataclass(frozen=True)
class PartitionChoice:
    """Which part of the data set this client holds.

    Attributes:
        index: of the part; None leaves the choice to the server.
        count: parts in all.
    """

    index: int | None
    count: int

    @classmethod
    def parse(cls, text: str | None) -> PartitionChoice | None:
        """Read "i/N" or "auto"; None means that all of the data are this client's own.

        Raises:
            ConfigError: it is neither.
        """
        if text is None:
            return None
        if text == "auto":
            return cls(None, 0)
        index, slash, count = text.partition("/")
        if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return cls(int(index), int(count))
        raise ConfigError(f'--partition {text}: write i/N with 0 <= i < N, such as 0/3, or "auto"')


def choose_device(name: str) -> torch.device:
    """The device of --device auto|cpu|cuda.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class PrivateData:
    """Images of one client, of which a run's config says how they are taken.

    Attributes:
        source: where they are.
        device: where they are measured.
    """

    def __init__(
        self,
        spec: str,
        data_dir: Path | None,
        choice: PartitionChoice | None,
        device: torch.device,
        encoder_weights: Path | None = None,
    ) -> None:
        self.device = device
        self.source = open_source(spec, data_dir)
        self._choice = choice
        self._encoder_weights = encoder_weights

    @property
    def wants_partition(self) -> bool:
        """Whether the server is to choose the partition."""
        return self._choice is not None and self._choice.index is None

    def measure(
        self, config: RunConfig, name: str, assigned: tuple[int, int], guard: Guard
    ) -> tuple[FeatureEncoder, Moments]:
        """Load this client's images and take what training may know of them.

        Args:
            config: the run.
            name: of this client.
            assigned: (index, count) that the server chose; used if it was asked to.
            guard: computes the moments, or releases them privately.

        Returns:
            The frozen encoder on the device, and the moments that training matches.
        """
        images = self.images(config, self.part(config, assigned), name)
        log.info("measuring the features of %d images", len(images))
        encoder = self.encoder(config)
        return encoder, guard.moments(config, encoder, images, self.device)

    def images(self, config: RunConfig, indices: Indices, name: str) -> LocalImages:
        """Those of a part that are trained on; raises as `LocalImages.of`."""
        return LocalImages.of(config, self.source, indices, name)

    def encoder(self, config: RunConfig) -> FeatureEncoder:
        """The run's, on the device; raises as `load_encoder`."""
        return load_encoder(
            config.encoder.name,
            layers=config.encoder.layers,
            pool=config.encoder.pool,
            weights=self._encoder_weights,
        ).to(self.device)

    def part(self, config: RunConfig, assigned: tuple[int, int]) -> Indices:
        """Positions of this client's images in the source.

        Raises:
            DataError: the source cannot be divided so, or the server assigned no part of it.
        """
        if self._choice is None:
            return np.arange(len(self.source))
        index, count = self._choice.index, self._choice.count
        if index is None:
            index, count = assigned
        if not 0 <= index < count:
            raise DataError(f"the server assigned partition {index} of {count}")
        data = config.data.model_copy(update={"clients": count})
        return partition(split_by(self.source, config), data, config.seed)[index]
