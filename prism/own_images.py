"""A config made to fit a folder of a person's own images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from common.config import read_config
from common.data import open_source
from common.errors import ConfigError
from common.sections import Name

MOST_CLASSES: Final = 1000
"""As many as `data.classes` takes."""
_NAME: Final = TypeAdapter(Name)
_SHOWN: Final = 12


def fitted(
    config: Path, overrides: Sequence[str], data: str | None, note: Callable[[str], None]
) -> list[str]:
    """Overrides under which a config is for the images of a folder.

    They make `data.name` "folder", and `data.classes` the names of the sub-folders. What the
    given overrides say of these keys stands; so does a config's own list of classes, or its wish
    to ignore labels.

    Args:
        config: the run's file.
        overrides: that were given.
        data: as `--data`; for anything but a folder, the overrides stay as they are.
        note: told which classes were found, in one line.

    Raises:
        ConfigError: the config or an override cannot be read, or a sub-folder cannot be a class.
        DataError: the folder cannot be read.
    """
    if data is None or not data.startswith("folder:"):
        return [*overrides]
    changes = ['data.name="folder"', *overrides]
    section = read_config(config, changes)["data"]
    if not isinstance(section, dict) or section.get("name") != "folder":
        return changes
    if section.get("classes") or section.get("labels") in ("ignore", "cells"):
        return changes
    names = open_source(data).class_names
    if not names:
        note(f"no classes: not every image of {data.removeprefix('folder:')} is in a sub-folder")
        return changes
    _check(names)
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    note(f"{len(names)} classes in {data.removeprefix('folder:')}: {shown}")
    return [*changes, f"data.classes={json.dumps(names, ensure_ascii=False)}"]


def _check(names: Sequence[str]) -> None:
    otherwise = "; data.labels=ignore learns the images without classes"
    if len(names) > MOST_CLASSES:
        raise ConfigError(
            f"{len(names)} sub-folders, but a run has at most {MOST_CLASSES} classes{otherwise}"
        )
    for name in names:
        try:
            _NAME.validate_python(name)
        except ValidationError as error:
            raise ConfigError(
                f"sub-folder {name!r} cannot name a class: it takes up to 256 characters, none of "
                f"them a control character{otherwise}"
            ) from error
