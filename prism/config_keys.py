"""Every key of a run's config, as the models in `common.sections` have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from common.config import RunConfig
from common.config_text import flat
from common.defaults import METHOD_DEFAULTS

_TYPES: Final = {"integer": "integer", "number": "number", "string": "text", "boolean": "boolean"}
_LIMITS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "maxLength": "{} characters or fewer",
    "maxItems": "{} entries or fewer",
}
"""How a JSON schema's bounds read."""


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: with dots, as --set takes it.
        type: with what it may be: choices, or bounds.
        default: as TOML has it, with those of methods that have others; "-" where it follows from
            other keys, or where nothing is set.
        help: what it means.
    """

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True)
class KeySection:
    """A section's keys; `name` is empty for those outside any."""

    name: str
    help: str
    keys: tuple[Key, ...]


def sections() -> tuple[KeySection, ...]:
    """The whole config, in order: first the keys outside sections."""
    schema = RunConfig.model_json_schema()
    loose, found = [], []
    for name, field in schema["properties"].items():
        if "$ref" in field:
            section = schema["$defs"][field["$ref"].rpartition("/")[2]]
            keys = [_key(f"{name}.{key}", of) for key, of in section["properties"].items()]
            found.append(KeySection(name, _line(section["description"]), tuple(keys)))
        else:
            loose.append(_key(name, field))
    return (KeySection("", _line(schema["description"]), tuple(loose)), *found)


def _key(name: str, field: Mapping[str, Any]) -> Key:
    one = next((of for of in field.get("anyOf", ()) if of.get("type") != "null"), field)
    return Key(name, _type(one), _default(name, field), _line(field["description"]))


def _type(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return "one of " + ", ".join(json.dumps(choice) for choice in field["enum"])
    kind = _TYPES.get(field["type"]) or f"list of {_TYPES[field['items']['type']]}s"
    limits = [
        words.format(_number(field[limit])) for limit, words in _LIMITS.items() if limit in field
    ]
    return ", ".join([kind, *limits])


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:g}"


def _default(name: str, field: Mapping[str, Any]) -> str:
    value = field.get("default")
    shown = "-" if value is None else json.dumps(value)
    for method, defaults in METHOD_DEFAULTS.items():
        other = dict(flat(defaults)).get(name)
        if other is not None:
            shown += f"; {json.dumps(other)} for {method}"
    return shown


def _line(text: str) -> str:
    return " ".join(text.split())
