"""What people write about a config besides its file, and what they are told is wrong with it."""

from __future__ import annotations

import tomllib
from typing import Any

from pydantic import ValidationError

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
    except tomllib.TOMLDecodeError:
        table[parts[-1]] = value.strip()


def mistakes(error: ValidationError) -> list[str]:
    """One line for each mistake that validation found, naming its key."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"] if part != "_resolve")
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict) else f", not {item['input']!r}"
            lines.append(f"{key}: {message}{given}" if key else message)
    return lines
