"""A tiny run under a privacy mechanism, and what a new client process trains on."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.local_images import LocalImages
from client.loss import Moments
from client.privacy_guard import Guard
from common.config import RunConfig, parse_config
from common.data import ArraySource, load_images, open_source
from common.encoders import load_encoder

TINY = """
rounds = 4
[data]
min_class_size = 2
[model]
width = 1
latent = 1
image_size = 16
[encoder]
pool = 2
[train]
local_steps = 1
batch_size = 4
"""


CPU = torch.device("cpu")
DIGITS = open_source("digits")
IMAGES = load_images(DIGITS, np.arange(60), 16, 1)
assert DIGITS.labels is not None
LABELS = DIGITS.labels[:60]
ENCODER = load_encoder("small", pool=2)


def config(mechanism: str = "moments", *changes: str, **privacy: Any) -> RunConfig:
    """A run under a mechanism; labels are ignored under "moments" unless a change says otherwise,
    for sixty images of ten classes drown in the noise of any claim that one would make."""
    settings_ = [f"privacy.mechanism={mechanism}"]
    settings_ += ["data.labels=ignore"] if mechanism == "moments" else []
    settings_ += [f"privacy.{key}={value}" for key, value in privacy.items()]
    return parse_config(TINY, [*settings_, *changes])


def released(
    state: Path,
    run: RunConfig,
    images: Tensor = IMAGES,
    labels: NDArray[np.int64] = LABELS,
    **options: Any,
) -> Moments:
    """What a new client process trains on."""
    guard = Guard(state, **options)
    guard.agree(run)
    return guard.moments(run, ENCODER, local_images(run, images, labels), CPU)


def local_images(
    run: RunConfig, images: Tensor = IMAGES, labels: NDArray[np.int64] = LABELS
) -> LocalImages:
    """Images of a client, labelled as the first digits are."""
    source = ArraySource("test", images[:, 0].numpy(), labels[: len(images)], run.classes)
    return LocalImages.of(run, source, np.arange(len(images)))
