"""The data sets that are known by name: what a config may assume of them without opening them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_DIGITS: Final = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        channels: of its images; 1 is grey.
        classes: what its labels 0, 1, ... are called; empty where the config has to say.
    """

    channels: int
    classes: tuple[str, ...] = ()


DATA_SETS: Final[Mapping[str, DataSet]] = {
    "digits": DataSet(1, _DIGITS),
    "mnist": DataSet(1, _DIGITS),
    "fmnist": DataSet(
        1,
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "cifar10": DataSet(
        3,
        (
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
    ),
    "celeba": DataSet(3),
    "folder": DataSet(3),
}
"""By the names that `data.name` takes; the classes of CelebA follow from `data.attributes`."""


def attribute_classes(attributes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of all combinations of CelebA's attributes; bit i of a label is attribute i."""
    return tuple(
        ", ".join(name if label >> i & 1 else f"not {name}" for i, name in enumerate(attributes))
        for label in range(1 << len(attributes))
    )
