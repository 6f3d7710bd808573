"""The distinguishing test of the release of classes: whole, and on each class's block alone.

The mechanism is an argument, so that a broken one can be given too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from benchmarks.attack import CONFIDENCE, Finding, clopper_pearson
from client.class_release import Released, calibrate_classes, image_vectors
from client.mechanisms import Calibration
from client.weighted import Scales
from common.accounting import gaussian_epsilon
from common.sections import PrivacyConfig

ClassMechanism = Callable[
    [Iterable[tuple[Sequence[Tensor], Tensor]], int, Calibration, Scales], Released
]
Record = tuple[tuple[float, float], int]
"""Features of an image, and its label."""

IMAGES = 4
CLASSES = 3
"""Of which the last has no image in any data set here."""
SCALES = Scales(2.0, (1.0,), (1.0,), (2,))
LEFT: Record = ((1e6, 0.0), 0)
"""What all records are but one: u is e_3 in its block, up to a part in a million."""
NEIGHBOURS: dict[str, Record] = {
    "same class": ((0.0, 1e6), 0),
    "other class": ((1e6, 0.0), 1),
    "no features": ((0.0, 0.0), 0),
}
"""The other data set's one record: each orthogonal to LEFT, as far apart as two can be."""


def distinguish_classes(
    mechanism: ClassMechanism,
    privacy: PrivacyConfig,
    trials: int,
    neighbours: Sequence[str] = tuple(NEIGHBOURS),
    confidence: float = CONFIDENCE,
) -> Iterator[Finding]:
    """Tell worst-case neighbours apart with the optimal test; one finding a pair.

    As `benchmarks.attack.distinguish`, on the whole vector and on each block by itself, where the
    two data sets differ by less: mu is their distance there over the noise that is claimed, and
    must lie in the interval that the two error rates leave. A block without noise, which no pair
    may tell by its distance, is exactly 0 where no image is, and that is looked for by itself.

    Args:
        mechanism: as `release_classes`.
        privacy: the claim.
        trials: releases of each data set.
        neighbours: names of NEIGHBOURS.
        confidence: of each finding as a whole.
    """
    calibration = calibrate_classes(privacy, IMAGES)
    (sigma,) = calibration.sigmas

    def releases(record: Record) -> Released:
        """(trials, CLASSES, length) of LEFT in all records but one."""
        features, labels = _data_set(record)
        return np.stack(
            [mechanism([(features, labels)], CLASSES, calibration, SCALES) for _ in range(trials)]
        )

    ours = releases(LEFT)
    for name in neighbours:
        theirs = releases(NEIGHBOURS[name])
        one, other = _exact(LEFT), _exact(NEIGHBOURS[name])
        parts = {"": slice(None)} | {f"_class_{c}": slice(c, c + 1) for c in range(CLASSES)}
        apart = {p: one[at] - other[at] for p, at in parts.items() if (one[at] != other[at]).any()}
        each = 1 - (1 - confidence) / (2 * len(apart))
        figures: dict[str, float] = {"claimed": privacy.epsilon, "trials": 2 * trials}
        silent = sum(
            not block.any() for block in np.concatenate([ours, theirs]).reshape(-1, SCALES.length)
        )
        passed = silent == 0
        for part, difference in apart.items():
            at = parts[part]
            direction = other[at] - one[at]
            middle = float((direction * (one[at] + other[at])).sum()) / 2
            rates = [
                clopper_pearson(
                    int(((made[:, at] * direction).sum((1, 2)) > middle).sum()), trials, each
                )
                for made in (ours, theirs)
            ]
            low, high = (
                max(0.0, float(norm.isf(false) - norm.isf(true)))
                for false, true in zip(reversed(rates[0]), rates[1], strict=True)
            )
            passed &= low <= float(np.linalg.norm(difference)) / sigma <= high
            figures[f"epsilon_low{part}"] = gaussian_epsilon(low, privacy.delta)
            figures[f"epsilon_high{part}"] = gaussian_epsilon(high, privacy.delta)
        figures["silent_blocks"] = silent
        yield Finding(
            f"distinguishing, with labels: {name}",
            passed,
            "what is claimed lies in the interval on worst-case neighbours, whole and by class",
            figures,
        )


def _data_set(record: Record) -> tuple[list[Tensor], Tensor]:
    rows, labels = zip(record, *[LEFT] * (IMAGES - 1), strict=True)
    return [torch.tensor(rows)[:, :, None, None]], torch.tensor(labels)


def _exact(record: Record) -> Released:
    """(CLASSES, length) what would be released without noise."""
    features, labels = _data_set(record)
    sums = torch.zeros(CLASSES, SCALES.length, dtype=torch.float64)
    sums.index_add_(0, labels, image_vectors(features, SCALES))
    return np.asarray(sums.numpy() / IMAGES)
