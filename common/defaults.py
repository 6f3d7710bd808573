"""Defaults of a run's config that follow from its other keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from common.catalogue import DATA_SETS, attribute_classes

METHOD_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "fedpm": {
        "sharpening": 1.0,
        "train": {"learning_rate": 0.1, "learning_rate_final": 0.1},
        "codec": {"up": "raw", "down": "keyframe"},
        "output": {"mask": "sample", "average": 0.0},
    },
    "fedavg": {
        "sharpening": 1.0,
        "train": {
            "learning_rate": 0.02,
            "learning_rate_final": 0.001,
            "moving_average_leak": 0.0,
        },
        "codec": {"up": "float32", "down": "keyframe"},
        "output": {"average": 0.1},
    },
}
"""Defaults that a method changes: keys, and keys of sections."""
SAMPLED_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"train": {"annealing": 0.0}}
"""Likewise where the exported mask is sampled: training then matches what sampled masks give."""

GRACE_SECONDS: Final = 60.0
"""For which clients that are gone are waited for, unless a deadline is shorter."""


def with_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill in what is not given.

    Args:
        raw: a config as it was read; anything wrong in it is left for the validation.
    """
    raw = _with_labels(raw)
    data, model = raw.get("data", {}), raw.get("model", {})
    if isinstance(data, dict) and isinstance(model, dict) and model.get("channels") is None:
        known = DATA_SETS.get(str(data.get("name", "digits")))
        raw = {**raw, "model": {**model, "channels": known.channels if known else 3}}
    raw = _with_rounds(raw)
    raw = _filled(raw, METHOD_DEFAULTS.get(str(raw.get("method")), {}))
    output = raw.get("output", {})
    if isinstance(output, dict) and output.get("mask") == "sample":
        raw = _filled(raw, SAMPLED_DEFAULTS)
    return raw


def _with_rounds(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill in how many clients rounds need, and how long they wait for those who are gone."""
    data, rounds = raw.get("data", {}), raw.get("round", {})
    if not (isinstance(data, dict) and isinstance(rounds, dict)):
        return raw
    clients, start, least, grace, deadline = (
        data.get("clients", 3),
        rounds.get("start_clients"),
        rounds.get("min_clients"),
        rounds.get("grace_seconds"),
        rounds.get("deadline_seconds", 600.0),
    )
    start = start or least or clients
    if not least and isinstance(clients, int) and isinstance(start, int):
        least = min(start, -(-clients // 2))
    if grace is None and isinstance(deadline, int | float):
        grace = min(GRACE_SECONDS, deadline)
    given = {"start_clients": start, "min_clients": least, "grace_seconds": grace}
    return {**raw, "round": {**rounds, **given}}


def _with_labels(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill in which classes there are, and whether they are used."""
    data = raw.get("data", {})
    if not isinstance(data, dict):
        return raw
    name = str(data.get("name", "digits"))
    if name == "celeba" and not data.get("attributes"):
        data = {**data, "attributes": ["Male"]}
    attributes = data.get("attributes")
    listed = tuple(map(str, attributes)) if isinstance(attributes, list | tuple) else ()
    classes = data.get("classes") or list(brought_classes(name, listed))
    if data.get("labels") is None:
        data = {**data, "labels": "use" if classes else "ignore"}
    return {**raw, "data": {**data, "classes": classes}}


def brought_classes(name: str, attributes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that a data set is known to have."""
    if name == "celeba":
        return attribute_classes(attributes[:8])
    return DATA_SETS[name].classes if name in DATA_SETS else ()


def _filled(raw: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what is not given, one level deep."""
    for key, default in defaults.items():
        given = raw.get(key, {} if isinstance(default, dict) else default)
        raw = {**raw, key: {**default, **given} if isinstance(given, dict) else given}
    return raw
