"""Train the bundled encoder on CIFAR-10 and write its weights.

    python -m benchmarks.train_encoder --data-dir DIR

Six epochs on two CPU cores take three to five minutes and end near 80 % test accuracy. DIR holds
CIFAR-10 in torchvision's layout or as cifar10-train.zip and cifar10-test.zip.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from common.data import load_images, open_source, to_unit
from common.encoders import FeatureEncoder, load_small
from common.encoders.base import fold
from common.encoders.small import BUNDLED, SMALL
from common.errors import DataError, PrismError
from common.seeding import derive_seed, words


class Trainee(nn.Module):
    """The encoder before its batch normalisation is folded, and a linear classifier on top."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        inputs = (3, *SMALL.widths[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, bias=False)
            for i, o in zip(inputs, SMALL.widths, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in SMALL.widths)
        self.head = nn.Linear(SMALL.widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [-1, 1] -> (B, classes) logits."""
        x = images
        for index, (conv, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu_(norm(conv(x)))
            if index in SMALL.pooled:
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits

    def folded(self) -> dict[str, Tensor]:
        """The tensors of the encoder alone, float16."""
        tensors = {}
        for index, (conv, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            weight, bias = fold(conv.get_parameter("weight").detach(), norm.state_dict())
            tensors[f"conv{index}.weight"] = weight.half().contiguous()
            tensors[f"conv{index}.bias"] = bias.half().contiguous()
        return tensors


def load(data_dir: Path, train: bool) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as (n, 3, 32, 32) uint8 images and (n,) int64 labels."""
    source = open_source("cifar10", data_dir, train)
    if source.labels is None:
        raise DataError(f"{source.name} has no labels to train a classifier on")
    images = load_images(source, np.arange(len(source)), 32, 3)
    return images, torch.from_numpy(source.labels)


def train(model: Trainee, images: Tensor, labels: Tensor, options: argparse.Namespace) -> None:
    """AdamW over one cycle; images mirrored and shifted by up to two pixels."""
    steps = len(images) // options.batch_size
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.learning_rate, total_steps=options.epochs * steps, pct_start=0.2
    )
    generator = torch.Generator().manual_seed(derive_seed(options.seed, "encoder-augment"))
    for epoch in range(options.epochs):
        started, total = time.perf_counter(), 0.0
        order = torch.from_numpy(words(len(images), options.seed, "encoder-order", epoch).argsort())
        for step in range(steps):
            chosen = order[step * options.batch_size : (step + 1) * options.batch_size]
            batch = augment(to_unit(images[chosen]), generator)
            loss = F.cross_entropy(model(batch), labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1}/{options.epochs}: loss {total / steps:.4f}, "
            f"{time.perf_counter() - started:.1f} s",
            file=sys.stderr,
            flush=True,
        )


def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image with probability 1/2; shift the whole batch by up to two pixels."""
    mirrored = torch.rand(len(batch), generator=generator) < 0.5
    batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(3), batch)
    top, left = torch.randint(0, 5, (2,), generator=generator).tolist()
    return F.pad(batch, (2, 2, 2, 2), mode="reflect")[:, :, top : top + 32, left : left + 32]


@torch.no_grad()
def accuracy(encoder: FeatureEncoder, head: nn.Linear, images: Tensor, labels: Tensor) -> float:
    """Share of images that the written encoder, with the trained head, classifies right."""
    right = 0
    for start in range(0, len(images), 1000):
        features = encoder(to_unit(images[start : start + 1000]))[-1].mean(dim=(2, 3))
        right += int((head(features).argmax(1) == labels[start : start + 1000]).sum())
    return right / len(images)


def main() -> None:
    """Train, write, measure what was written."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.006)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(derive_seed(options.seed, "encoder-init"))
    started = time.perf_counter()
    try:
        images, labels = load(options.data_dir, train=True)
        test_images, test_labels = load(options.data_dir, train=False)
    except PrismError as error:
        sys.exit(str(error))
    model = Trainee(classes=int(labels.max()) + 1)
    train(model, images, labels, options)
    options.out.write_bytes(save(model.folded()))
    encoder = load_small(weights=options.out)
    result = {
        "test_accuracy": accuracy(encoder, model.head, test_images, test_labels),
        "seconds": round(time.perf_counter() - started, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "file_bytes": options.out.stat().st_size,
        "sha256": encoder.digest().hex(),
    }
    for key, value in result.items():
        if not options.json:
            print(f"{key}: {value}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
