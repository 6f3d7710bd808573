"""A small classifier trained on the spot on the images of an evaluation.

After LeNet-5 (LeCun et al. 1998), with ReLU, max-pooling and more channels. Its features name
the Frechet distance "FD (lenet)".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from common.data.source import to_unit
from common.errors import DataError
from common.seeding import derive_seed, words

FEATURES: Final = 84
_SIDE: Final = 32
_BATCH: Final = 64
_READ_BATCH: Final = 1000
_EPOCHS: Final = 3
_IMAGES_SEEN: Final = 20_000
_HELD_OUT_EVERY: Final = 10

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


class Lenet(nn.Module):
    """conv 5x5, 16; pool; conv 5x5, 32; pool; 120; 84; classes.

    Args:
        channels: image channels, 1 or 3.
        classes: number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 5)
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.fc1 = nn.Linear(32 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, FEATURES)
        self.fc3 = nn.Linear(FEATURES, classes)
        # Share of held-out images classified right; kept with the weights.
        self.accuracy: Tensor
        self.register_buffer("accuracy", torch.zeros(()))

    def features(self, images: Tensor) -> Tensor:
        """(B, channels, S, S) float32 in [-1, 1] -> (B, 84) float32, not negative."""
        x = images
        if x.shape[-1] != _SIDE:
            x = F.interpolate(x, (_SIDE, _SIDE), mode="bilinear", antialias=True)
        x = F.max_pool2d(F.relu_(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu_(self.conv2(x)), 2)
        x = F.relu_(self.fc1(x.flatten(1)))
        return F.relu_(self.fc2(x))

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, S, S) float32 in [-1, 1] -> (B, classes) logits."""
        logits: Tensor = self.fc3(self.features(images))
        return logits

    @torch.no_grad()
    def read(self, images: Tensor) -> NDArray[np.int64]:
        """(n, channels, S, S) uint8, on the classifier's device -> (n,) most likely classes."""
        logits = [self(to_unit(batch)) for batch in torch.split(images, _READ_BATCH)]
        classes: NDArray[np.int64] = torch.cat(logits).argmax(1).cpu().numpy()
        return classes


def train_lenet(
    images: Tensor,
    labels: NDArray[np.int64],
    seed: int,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Lenet:
    """A classifier of these images; every tenth is held out to state its accuracy.

    Seconds for the bundled digits, about a minute on one core for MNIST.

    Args:
        images: (n, C, S, S) uint8.
        labels: (n,) classes from 0.
        seed: of the initialisation and of the order; equal seeds train equally on one machine.
        cache: a directory where the result is kept, and found by the same images and seed.
        progress: told after each step.

    Returns:
        the classifier, frozen, on the CPU.

    Raises:
        DataError: the classes are fewer than two, or the images too few to train on.
    """
    classes = int(labels.max()) + 1 if len(labels) else 0
    if classes < 2 or len(images) < 2 * _HELD_OUT_EVERY:
        raise DataError(
            f"{len(images)} images of {classes} classes cannot train the lenet classifier; "
            "use other features"
        )
    path = None if cache is None else cache / f"lenet-{_key(images, labels, seed)}.safetensors"
    kept = None if path is None else _restored(path, images.shape[1], classes)
    if kept is not None:
        return kept
    held_out = np.arange(len(images)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    used = torch.from_numpy(~held_out)
    model = fit_lenet(images[used], labels[~held_out], classes, seed, progress)
    model.accuracy.fill_(float((model.read(images[~used]) == labels[held_out]).mean()))
    if path is not None:
        _keep(model, path)
    return model


def fit_lenet(
    images: Tensor,
    labels: NDArray[np.int64],
    classes: int,
    seed: int,
    progress: Progress | None = None,
) -> Lenet:
    """A classifier trained on all of these images, for a number of steps set in advance.

    Nothing is held out and nothing is chosen by accuracy: the last step's weights are returned,
    and their `accuracy` is 0, not measured.

    Args:
        images: (n, C, S, S) uint8, n > 0.
        labels: (n,) classes in [0, classes).
        classes: outputs.
        seed: of the initialisation and of the order.
        progress: told after each step.

    Returns:
        the classifier, frozen, on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lenet-init"))
        model = Lenet(images.shape[1], classes)
    targets = torch.from_numpy(labels)
    batch_size = min(_BATCH, len(images))
    per_epoch = len(images) // batch_size
    total = per_epoch * max(_EPOCHS, math.ceil(_IMAGES_SEEN / len(images)))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=total)
    for step in range(total):
        epoch, at = divmod(step, per_epoch)
        if at == 0:
            shuffle = words(len(images), seed, "lenet-order", epoch).argsort(kind="stable")
            order = torch.from_numpy(shuffle)
        chosen = order[at * batch_size : (at + 1) * batch_size]
        loss = F.cross_entropy(model(to_unit(images[chosen])), targets[chosen])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, total)
    return model.eval().requires_grad_(False)


def _key(images: Tensor, labels: NDArray[np.int64], seed: int) -> str:
    sha = hashlib.sha256(f"{seed}:{tuple(images.shape)}:".encode())
    sha.update(images.contiguous().numpy().tobytes())
    sha.update(labels.astype("<i8").tobytes())
    return sha.hexdigest()[:24]


def _restored(path: Path, channels: int, classes: int) -> Lenet | None:
    """What the cache has; a damaged entry is trained and written anew."""
    if not path.exists():
        return None
    model = Lenet(channels, classes)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError):
        return None
    return model.eval().requires_grad_(False)


def _keep(model: Lenet, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        partial.write_bytes(save(model.state_dict()))
        partial.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"cannot keep the lenet classifier in {path.parent}: {error}") from error
