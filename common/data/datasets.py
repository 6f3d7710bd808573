"""The data sets by name; torchvision's loaders and file layouts where it has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.catalogue import DATA_SETS, SPECS, attribute_classes
from common.data.folder import FolderSource
from common.data.source import ArraySource, ImageSource
from common.errors import DataError

CELEBA_CROP: Final = 160
"""Pixels of the 178 x 218 images that the published experiments keep."""
TEST_EVERY: Final = 6
"""Every sixth of the bundled digits is held out."""


def open_source(spec: str, data_dir: Path | None = None, train: bool = True) -> ImageSource:
    """Open a data set; nothing is downloaded.

    Args:
        spec: a name of `common.catalogue.DATA_SETS`, or `folder:PATH`, where PATH is a folder
            or a .zip archive of images.
        data_dir: where data sets with files of their own lie, as torchvision's `root`.
        train: the training part, else the test part; a folder has one part, which is both.

    Raises:
        DataError: the name is unknown, or the files are missing or corrupt.
    """
    name, separator, path = spec.partition(":")
    if name == "folder":
        if not path:
            raise DataError("write folder:PATH, such as folder:./images")
        return FolderSource(Path(path).expanduser())
    if name == "digits" and not separator:
        return _digits(train)
    if name not in OPENERS or separator:
        raise DataError(f"unknown data {spec!r}; known are {SPECS}")
    if data_dir is None:
        raise DataError(f"{name} needs --data-dir DIR with {DATA_SETS[name].files} in it")
    return OPENERS[name](data_dir.expanduser(), train)


def _digits(train: bool) -> ImageSource:
    """The 1,797 real 8x8 digits that scikit-learn brings along."""
    # Importing scikit-learn takes a second that other data sets need not spend.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    held_out = np.arange(len(bunch.images)) % TEST_EVERY == TEST_EVERY - 1
    chosen = ~held_out if train else held_out
    pixels = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    labels = bunch.target[chosen].astype(np.int64)
    return ArraySource("digits", pixels, labels, DATA_SETS["digits"].classes)


def _torchvision(name: str, cls: str, data_dir: Path, **options: Any) -> Any:
    """One of torchvision's data sets, its many complaints turned into one line."""
    # torchvision is slow to import, and neither digits nor folders need it.
    from common.compat import torchvision

    layout = f"{name} needs {DATA_SETS[name].files} in {data_dir} (--data-dir)"
    try:
        return getattr(torchvision.datasets, cls)(root=str(data_dir), download=False, **options)
    except RuntimeError as error:
        if "not found" not in str(error):
            raise DataError(f"cannot read {name} in {data_dir}: {error}") from error
        raise DataError(f"{layout}; not found or corrupt") from error
    # Truncated files end in assertions, index errors, pickle errors and more.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read {name} in {data_dir}: {reason}") from error


def _idx(name: str, cls: str) -> Callable[[Path, bool], ImageSource]:
    def open_idx(data_dir: Path, train: bool) -> ImageSource:
        loaded = _torchvision(name, cls, data_dir, train=train)
        labels = loaded.targets.numpy().astype(np.int64)
        return ArraySource(name, loaded.data.numpy(), labels, DATA_SETS[name].classes)

    return open_idx


def _cifar10(data_dir: Path, train: bool) -> ImageSource:
    jpeg = data_dir / f"cifar10-{'train' if train else 'test'}"
    for path in (jpeg.with_suffix(".zip"), jpeg):
        if path.exists():
            return FolderSource(path)
    loaded = _torchvision("cifar10", "CIFAR10", data_dir, train=train)
    labels = np.array(loaded.targets, dtype=np.int64)
    return ArraySource("cifar10", loaded.data, labels, tuple(loaded.classes))


class CelebASource(FolderSource):
    """CelebA's aligned faces, centre-cropped, one part of it, labelled by gender.

    Args:
        data_dir: torchvision's `root`.
        train: the training part, else the test part.

    Raises:
        DataError: the files are missing or corrupt.
    """

    def __init__(self, data_dir: Path, train: bool) -> None:
        loaded = _torchvision("celeba", "CelebA", data_dir, split="train" if train else "test")
        if not loaded.filename:
            raise DataError(f"celeba in {data_dir} has no images in this part")
        super().__init__(data_dir / "celeba" / "img_align_celeba", crop=CELEBA_CROP)
        self.name = "celeba"
        self._attributes: NDArray[np.int64] = loaded.attr.numpy().astype(np.int64)
        self._names = [name for name in loaded.attr_names if name]
        self.class_names = attribute_classes(("Male",))
        self.labels = self.combinations(("Male",))
        self._files = [PurePosixPath(name) for name in loaded.filename]

    def combinations(self, attributes: Sequence[str]) -> NDArray[np.int64]:
        """(n,) labels whose bit i is attribute i, as `common.catalogue.attribute_classes` names.

        Raises:
            DataError: CelebA has no such attribute.
        """
        labels = np.zeros(len(self._attributes), dtype=np.int64)
        for bit, name in enumerate(attributes):
            if name not in self._names:
                raise DataError(f"celeba has no attribute {name}; it has {', '.join(self._names)}")
            labels |= self._attributes[:, self._names.index(name)] << bit
        return labels


OPENERS: Final[Mapping[str, Callable[[Path, bool], ImageSource]]] = {
    "mnist": _idx("mnist", "MNIST"),
    "fmnist": _idx("fmnist", "FashionMNIST"),
    "cifar10": _cifar10,
    "celeba": CelebASource,
}
"""How data sets with files of their own are opened, from (data_dir, train)."""
