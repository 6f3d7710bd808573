"""What people write about a config besides its file, and what they are told is wrong with it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from common.errors import ConfigError


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one key of a config that was read, in place.

    Args:
        raw: tables of tables, as TOML has them.
        override: `key=value`, the key with dots, the value as in TOML or a bare word.

    Raises:
        ConfigError: it is of another form, or goes through a key that is no section.
    """
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override}: write key=value, such as train.local_steps=50")
    table = raw
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a section")
    try:
        table[parts[-1]] = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        table[parts[-1]] = value.strip()


def mistakes(error: ValidationError, keys: Collection[str]) -> list[str]:
    """One line for each mistake that validation found, naming its key.

    Args:
        error: what validation said.
        keys: that there are, to tell which one an unknown key was meant to be.
    """
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"] if part != "_resolve")
        if item["type"] == "extra_forbidden":
            near = nearest(key, keys)
            meant = f": did you mean {near}?" if near else "; `prism config` lists all there are"
            lines.append(f"{key}: unknown key{meant}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict) else f", not {item['input']!r}"
            lines.append(f"{key}: {message}{given}" if key else message)
    return lines


def nearest(key: str, keys: Collection[str]) -> str | None:
    """The key that was most likely meant: one of that name in another section, or alike."""
    last = key.rpartition(".")[2]
    moved = [known for known in keys if known.rpartition(".")[2] == last]
    alike = difflib.get_close_matches(key, keys, n=1)
    return next(iter([*moved, *alike]), None)


def key_names(model: type[BaseModel]) -> tuple[str, ...]:
    """All keys of a config and its sections, with dots."""
    names = []
    for name, field in model.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += [f"{name}.{key}" for key in key_names(field.annotation)]
    return tuple(names)


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of tables of tables, with dots, and their values."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
