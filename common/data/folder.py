"""A person's own images: a folder, or a zip archive of one."""

from __future__ import annotations

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from common.data.source import ImageSource
from common.errors import DataError

SUFFIXES: Final = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File names that are taken for images; everything else in a folder is passed over."""
_BATCH: Final = 512


class _Store(ABC):
    """Where the files are."""

    @abstractmethod
    def names(self) -> list[PurePosixPath]:
        """All files, relative to the root."""

    @abstractmethod
    def open(self, name: PurePosixPath) -> IO[bytes]:
        """Open one file for reading."""

    @abstractmethod
    def where(self, name: PurePosixPath) -> str:
        """What to call one file in a message."""


class _Directory(_Store):
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[PurePosixPath]:
        folders = os.walk(self._root, onerror=self._refuse)
        files = (Path(folder, name) for folder, _, names in folders for name in names)
        return [PurePosixPath(file.relative_to(self._root).as_posix()) for file in files]

    def _refuse(self, error: OSError) -> None:
        # Images that cannot be seen must not go missing in silence.
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error

    def open(self, name: PurePosixPath) -> IO[bytes]:
        return (self._root / name).open("rb")

    def where(self, name: PurePosixPath) -> str:
        return str(self._root / name)


class _Archive(_Store):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip: zipfile.ZipFile | None = None

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None:
            self._zip = zipfile.ZipFile(self._path)
        return self._zip

    def names(self) -> list[PurePosixPath]:
        infos = self._opened().infolist()
        return [PurePosixPath(info.filename) for info in infos if not info.is_dir()]

    def open(self, name: PurePosixPath) -> IO[bytes]:
        return self._opened().open(str(name))

    def where(self, name: PurePosixPath) -> str:
        return f"{name} in {self._path}"


class FolderSource(ImageSource):
    """Image files below a folder or inside a zip archive, in the order of their names.

    Where every image lies in a subfolder of the first level at which the paths part, those
    subfolders are the classes, in the order of their names. Files and folders whose names
    begin with a dot or with `__MACOSX` are passed over.

    Args:
        path: a folder or a `.zip` file.
        crop: side in pixels of a centred square to cut out of each image first.

    Raises:
        DataError: the path does not exist, is no folder and no archive, or has no images.
    """

    def __init__(self, path: Path, crop: int | None = None) -> None:
        self.name = f"folder {path}"
        self._crop = crop
        try:
            self._store = _store(path)
            found = self._store.names()
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        self._files = sorted(name for name in found if _is_image(name))
        if not self._files:
            raise DataError(f"{path} has no images ({', '.join(sorted(SUFFIXES))})")
        self.class_names, self.labels = _classes(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def labels_by(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """(n,) positions in `classes`, by the sub-folders of the first level that bears them.

        Unlike `labels`, these do not hang on which of the classes are there: a folder with one
        sub-folder has one class.

        Raises:
            DataError: an image lies in no folder of these names.
        """
        depth = min(len(file.parts) for file in self._files) - 1
        missing: list[str] = []
        for level in range(depth):
            found = [file.parts[level] for file in self._files]
            foreign = sorted(set(found) - set(classes))
            if not foreign:
                return np.array([classes.index(name) for name in found], dtype=np.int64)
            if len(foreign) < len(set(found)):
                missing = foreign
        wanted = ", ".join(classes)
        if missing:
            raise DataError(f"{self.name}: sub-folder {missing[0]} is no class; they are {wanted}")
        raise DataError(f"{self.name}: sort the images into sub-folders named as classes: {wanted}")

    def batches(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """See `ImageSource.batches`."""
        run: list[NDArray[np.uint8]] = []
        for index in indices:
            pixels = self._read(self._files[int(index)])
            if run and (run[0].shape != pixels.shape or len(run) == _BATCH):
                yield np.stack(run)
                run = []
            run.append(pixels)
        if run:
            yield np.stack(run)

    def _read(self, name: PurePosixPath) -> NDArray[np.uint8]:
        try:
            with self._store.open(name) as stream, Image.open(stream) as image:
                return decode(image, self._crop)
        except DataError as error:
            raise DataError(f"{self._store.where(name)}: {error}") from error
        # Pillow's decoders raise whatever their format makes them trip over.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"cannot read image {self._store.where(name)}: {reason}") from error


def decode(image: Image.Image, crop: int | None = None) -> NDArray[np.uint8]:
    """The pixels of an opened image, upright, on white where it is transparent.

    Args:
        image: any mode but 32-bit grey; of 16-bit grey the upper 8 bits are used.
        crop: side in pixels of a centred square to cut out.

    Returns:
        (H, W, 1) or (H, W, 3) uint8.

    Raises:
        DataError: the pixels are 32-bit numbers, whose range nobody states.
    """
    if image.mode in ("I", "F"):
        raise DataError("32-bit pixels have no known range; save the image with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        wide = np.asarray(ImageOps.exif_transpose(image))
        return _centre((wide >> 8).astype(np.uint8)[..., None], crop)
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    grey = image.mode in ("1", "L", "LA")
    pixels = np.asarray(upright.convert("L" if grey else "RGB"))
    return _centre(pixels[..., None] if grey else pixels, crop)


def _centre(pixels: NDArray[np.uint8], crop: int | None) -> NDArray[np.uint8]:
    if crop is None:
        return pixels
    height, width = pixels.shape[:2]
    if min(height, width) < crop:
        raise DataError(f"{width} x {height} pixels; a centre crop takes {crop}")
    top, left = (height - crop) // 2, (width - crop) // 2
    return pixels[top : top + crop, left : left + crop]


def _store(path: Path) -> _Store:
    if path.is_dir():
        return _Directory(path)
    if not path.exists():
        raise DataError(f"data folder {path} does not exist")
    if path.suffix.lower() != ".zip":
        raise DataError(f"{path} is neither a folder nor a .zip archive")
    return _Archive(path)


def _is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return not hidden and name.suffix.lower() in SUFFIXES


def _classes(
    files: Sequence[PurePosixPath],
) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Names and labels from the first folder level at which the paths part."""
    shared = 0
    while len({file.parts[: shared + 1] for file in files}) == 1 and shared < min(
        len(file.parts) - 1 for file in files
    ):
        shared += 1
    if any(len(file.parts) < shared + 2 for file in files):
        return (), None
    names = tuple(sorted({file.parts[shared] for file in files}))
    number = {name: label for label, name in enumerate(names)}
    return names, np.array([number[file.parts[shared]] for file in files], dtype=np.int64)
