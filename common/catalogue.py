"""The data sets that are known by name: what may be said of them without opening them.

Configs, help texts and `common.data.datasets`, which opens them, all go by this table. It imports
nothing, so that `--help` costs nothing.
"""

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
        files: what of it must lie in --data-dir; empty where it needs no such folder.
    """

    channels: int
    classes: tuple[str, ...] = ()
    files: str = ""


DATA_SETS: Final[Mapping[str, DataSet]] = {
    "digits": DataSet(1, _DIGITS),
    "mnist": DataSet(1, _DIGITS, "MNIST/raw/*-ubyte"),
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
        "FashionMNIST/raw/*-ubyte",
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
        "cifar-10-batches-py/ or cifar10-{train,test}.zip of JPEGs",
    ),
    "celeba": DataSet(3, files="celeba/img_align_celeba/ and celeba's five .txt files"),
    "folder": DataSet(3),
}
"""By the names that `data.name` takes; the classes of CelebA follow from `data.attributes`."""


SPECS: Final = ", ".join([*(name for name in DATA_SETS if name != "folder"), "folder:PATH"])
"""How images are given on a command line, for its help."""
IN_DATA_DIR: Final = ", ".join(name for name, known in DATA_SETS.items() if known.files)
"""The data sets that need --data-dir, likewise."""


def attribute_classes(attributes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of all combinations of CelebA's attributes; bit i of a label is attribute i."""
    return tuple(
        ", ".join(name if label >> i & 1 else f"not {name}" for i, name in enumerate(attributes))
        for label in range(1 << len(attributes))
    )
