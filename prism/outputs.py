"""The forms that drawn images are written in: a picture, arrays, or folders of classes."""

from __future__ import annotations

import io
import itertools
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import ConfigError
from common.files import write_atomically
from prism.drawing import Drawn

UNLABELLED_FOLDER: Final = "images"
_UNSAFE: Final = frozenset('/\\:*?"<>|')
"""Characters that some file system does not take in a name."""
_NAME_BYTES: Final = 200


def writer_of(out: Path) -> Callable[[Drawn, Path], None]:
    """What writes to this path: a picture for .png, arrays for .npz, else folders.

    Raises:
        ConfigError: it is neither, or a folder that has something in it.
        OSError: it cannot be looked into.
    """
    suffix = out.suffix.lower()
    if out.is_dir():
        if next(out.iterdir(), None) is not None:
            raise ConfigError(f"--out {out} is not empty: name another folder, or empty this one")
        return write_folders
    if suffix in _FILES:
        return _FILES[suffix]
    if suffix or out.exists():
        raise ConfigError(f"--out {out}: end it in .png or .npz, or name a folder without a dot")
    return write_folders


def write_picture(drawn: Drawn, out: Path) -> None:
    """A PNG with a row for each class."""
    drawn.grid().save(out)


def write_arrays(drawn: Drawn, out: Path) -> None:
    """An .npz of what was drawn.

    `images` (n, C, S, S) uint8; where there are classes, also `labels` (n,) int64 and
    `class_names` (k,) str, what the labels 0, 1, ... are called.
    """
    arrays: dict[str, NDArray[Any]] = {"images": drawn.images.numpy()}
    if drawn.labels is not None:
        arrays["labels"] = drawn.labels
        arrays["class_names"] = np.array(drawn.class_names)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_atomically(out, content.getvalue())


def write_folders(drawn: Drawn, out: Path) -> None:
    """PNGs in a folder for each class, as `torchvision.datasets.ImageFolder` reads them."""
    folders = folder_names(drawn.class_names) or (UNLABELLED_FOLDER,)
    labels = np.zeros(len(drawn.images), int) if drawn.labels is None else drawn.labels
    out.mkdir(exist_ok=True)
    # Whatever interrupts this, no part of a class is left behind.
    with TemporaryDirectory(prefix=".unfinished-", dir=out) as unfinished:
        for label in np.unique(labels):
            folder = Path(unfinished, folders[label])
            folder.mkdir()
            for number, position in enumerate(np.flatnonzero(labels == label)):
                pixels = drawn.images[position].permute(1, 2, 0).numpy()
                image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
                image.save(folder / f"{number:05d}.png")
        for folder in sorted(Path(unfinished).iterdir()):
            folder.rename(out / folder.name)


def folder_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Names that any file system takes as a folder, no two alike even where case is ignored.

    A name that is safe as it is keeps its own.
    """
    safe = [_safe(name) for name in class_names]
    names, taken = [""] * len(safe), set[str]()
    for label in sorted(range(len(safe)), key=lambda label: safe[label] != class_names[label]):
        numbered = (f"{safe[label]}-{number}" for number in itertools.count(2))
        candidates = itertools.chain([safe[label]], numbered)
        names[label] = next(name for name in candidates if name.casefold() not in taken)
        taken.add(names[label].casefold())
    return tuple(names)


def _safe(name: str) -> str:
    plain = unicodedata.normalize("NFC", name)
    plain = "".join("_" if c in _UNSAFE or not c.isprintable() else c for c in plain)
    # Names that begin with a dot are hidden; a dot or space at the end is dropped by Windows.
    return plain.encode()[:_NAME_BYTES].decode(errors="ignore").strip(" .") or "_"


_FILES: Final[dict[str, Callable[[Drawn, Path], None]]] = {
    ".png": write_picture,
    ".npz": write_arrays,
}
