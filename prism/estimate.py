"""What a run would cost: estimates, from a step tried on this machine and bits that were measured.

Bits a parameter are means over whole runs. Early rounds take several times as many, late ones a
fraction (docs/results.md), so a short run costs more than is said here, a long one less.
"""

from __future__ import annotations

import math
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from client.local_images import LocalImages, local_moments
from client.methods import make_trainer
from common.config import RunConfig
from common.data import ImageSource, class_labels
from common.downlink import initial_state
from common.encoders import load_encoder
from common.layout import update_layout
from common.model.architecture import Architecture
from common.sections import PrivacyConfig
from prism.holdings import Indices

UP_BITS: Final = {
    "raw": 1.0,
    "entropy": 0.45,
    "flips": 0.15,
    "int16": 16.0,
    "bfloat16": 16.0,
    "float32": 32.0,
}
"""Bits a parameter of an update, by codec: measured over 60 rounds of MNIST (docs/results.md)."""
DOWN_BITS: Final = {"error-feedback": 0.41, "exact": 2.0, "keyframe": 16.0}
"""Likewise of a state; `exact` grows with the clients, from 1 to 4."""
CLIENT_BYTES: Final = 28
"""Bytes of memory that a parameter takes in training at least: weights, scores, gradient, Adam's
two moments, effective weights, noise, float32 each."""
SERVER_BYTES: Final = 24
"""Likewise on the server: state, average, what is held back, frozen weights, an update."""
_IMAGES: Final = 32
"""Images of each class, or sixteen times as many in all, that the trial reads."""
_SECONDS: Final = 3.0


@dataclass(frozen=True)
class Traffic:
    """Bytes of payload.

    Attributes:
        up: of one client in one round.
        down: likewise.
        total: of the whole run.
    """

    up: float
    down: float
    total: float

    @classmethod
    def of(cls, config: RunConfig) -> Traffic:
        """Estimate a run's."""
        up = 0.0
        for segment in update_layout(config):
            share = config.codec.coordinates_per_round if segment.codec == "flips" else 1.0
            up += segment.count * UP_BITS[segment.codec] * share / 8
        bits = 32.0 if config.method == "fedavg" else DOWN_BITS[config.codec.down]
        down = Architecture.of(config).dimension * bits / 8
        cohort = cohort_size(config)
        # State 0 is built from the seed.
        return cls(up, down, cohort * (config.rounds * up + (config.rounds - 1) * down))


@dataclass(frozen=True)
class Trial:
    """What one client's work took here.

    Attributes:
        step: seconds of a local step.
        image: seconds to read an image and measure its features.
        memory: bytes that this process held at most.
    """

    step: float
    image: float
    memory: int

    @classmethod
    def run(
        cls,
        config: RunConfig,
        source: ImageSource,
        part: Indices,
        device: torch.device,
        encoder_weights: Path | None = None,
    ) -> Trial:
        """Measure some of a client's images and train a few steps on them; nothing is kept.

        Raises:
            PrismError: as a client that starts.
        """
        # What a private release costs is read once and then forgotten; the steps are alike.
        plain = config.model_copy(
            update={
                "privacy": PrivacyConfig(),
                "train": config.train.model_copy(update={"local_steps": 1}),
            }
        )
        encoder = load_encoder(
            plain.encoder.name,
            layers=plain.encoder.layers,
            pool=plain.encoder.pool,
            weights=encoder_weights,
        ).to(device)
        images = LocalImages.of(plain, source, _some(plain, source, part), "check")
        started = time.monotonic()
        moments = local_moments(encoder, images, device)
        measured = time.monotonic() - started
        trainer, state = make_trainer(plain, encoder, moments, device), initial_state(plain)
        # The first step pays for what the later ones find ready.
        trainer.train(state, "check")
        steps: list[float] = []
        until = time.monotonic() + _SECONDS
        while not steps or (time.monotonic() < until and len(steps) < 10):
            steps.append(trainer.train(state, "check").seconds)
        return cls(float(np.median(steps)), measured / len(images), peak_memory())


def cohort_size(config: RunConfig) -> int:
    """Clients that train in a round, if all are here."""
    return max(1, math.ceil(config.round.participation * config.data.clients))


def threads(config: RunConfig) -> int:
    """CPU threads that `prism run` gives each client."""
    return max(1, cores() // config.data.clients)


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def round_seconds(config: RunConfig, trial: Trial) -> float:
    """A round of `prism run` on this machine: clients take turns where there are more than CPUs."""
    turns = max(1.0, cohort_size(config) * threads(config) / cores())
    return config.train.local_steps * trial.step * turns


def client_memory(config: RunConfig) -> int:
    """Bytes that training takes at least, besides the program and the images."""
    return CLIENT_BYTES * Architecture.of(config).dimension


def server_memory(config: RunConfig) -> int:
    """Bytes that the server takes beside its program."""
    d = Architecture.of(config).dimension
    planes = config.data.clients.bit_length()
    return SERVER_BYTES * d + planes * d // 8


def disk(config: RunConfig) -> float:
    """Bytes that the run's directory takes at most: checkpoints, the open round, outputs."""
    d, traffic = Architecture.of(config).dimension, Traffic.of(config)
    pictures = config.rounds // max(1, config.output.sample_every) * 100_000
    lines = config.rounds * cohort_size(config) * 1500
    return 2 * 12 * d + cohort_size(config) * max(traffic.up, d / 8) + pictures + lines


def free_memory() -> int:
    """Bytes that this machine, or the group of processes that this one is in, can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except OSError:
        return available * 1024
    return available * 1024 if limit == "max" else min(available * 1024, int(limit) - used)


def peak_memory() -> int:
    """Bytes that this process held at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _some(config: RunConfig, source: ImageSource, part: Indices) -> Indices:
    """A few of a part's images: of each class as many as it needs to count."""
    labels = class_labels(source, config)
    most = max(_IMAGES, config.data.min_class_size)
    if labels is None:
        return part[: 16 * most]
    held = labels[part]
    return np.concatenate([part[held == label][:most] for label in np.unique(held)])
