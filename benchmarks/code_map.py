"""Compute the bundled map from images to codes, of CIFAR-10, and write it.

    python -m benchmarks.code_map --data-dir DIR

Of every fifth image; half a minute on one CPU core. DIR holds CIFAR-10 in torchvision's layout
or as cifar10-train.zip. To be run again after `benchmarks.train_encoder`; the digest that is
printed belongs into `common/encoders/codes.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from common.cells import CODE_SIZE
from common.data import ImageSource, load_images, open_source
from common.encoders.base import tensors_digest
from common.encoders.codes import BUNDLED_MAP, SIDE, SKETCH, features, sketcher
from common.errors import PrismError

_EVERY = 5
_BATCHES = 20


def batches_of_features(source: ImageSource) -> Iterator[NDArray[np.float64]]:
    """(B, 1024) features of the images, once in colour and once in grey."""
    encoder = sketcher()
    for channels in (3, 1):
        for indices in np.array_split(np.arange(0, len(source), _EVERY), _BATCHES):
            images = load_images(source, indices, SIDE, channels)
            yield features(encoder, images).astype(np.float64)


def principal_map(source: ImageSource) -> tuple[dict[str, Tensor], float]:
    """The map's tensors, and the share of the standardised features' variance that codes keep.

    Features are standardised; codes are their coordinates along the leading eigenvectors of
    their correlations, each divided by its standard deviation.
    """
    count, first, second = 0, np.zeros(SKETCH), np.zeros((SKETCH, SKETCH))
    for batch in batches_of_features(source):
        count += len(batch)
        first += batch.sum(axis=0)
        second += batch.T @ batch
    mean = first / count
    covariance = second / count - np.outer(mean, mean)
    std = np.sqrt(covariance.diagonal()) + 1e-6
    variances, vectors = np.linalg.eigh(covariance / np.outer(std, std))
    # Ascending; and the sign of an eigenvector is arbitrary: its largest entry is positive here.
    variances, vectors = variances[::-1][:CODE_SIZE], vectors[:, ::-1][:, :CODE_SIZE]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(CODE_SIZE)])
    directions = vectors / np.sqrt(variances)
    named = {"mean": mean, "std": std, "directions": directions}
    tensors = {
        **{name: torch.from_numpy(values).half() for name, values in named.items()},
        "encoder": torch.tensor(list(sketcher().digest()), dtype=torch.uint8),
    }
    return tensors, float(variances.sum() / SKETCH)


def main() -> None:
    """Compute, write, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=BUNDLED_MAP)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    try:
        source = open_source("cifar10", options.data_dir, train=True)
    except PrismError as error:
        sys.exit(str(error))
    tensors, kept = principal_map(source)
    options.out.write_bytes(save(tensors))
    result = {
        "variance_kept": round(kept, 4),
        "seconds": round(time.perf_counter() - started, 1),
        "file_bytes": options.out.stat().st_size,
        "digest": tensors_digest(tensors).hex(),
    }
    for key, value in result.items():
        if not options.json:
            print(f"{key}: {value}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
