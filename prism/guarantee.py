"""What was released from clients' images, and what therefore holds."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from client.ledger import Entry, Ledger, total_epsilon
from common.accounting import compose, gaussian_epsilon
from common.errors import ConfigError

NONE: Final = "No formal privacy guarantee"
NOT_COVERED: Final = (
    "how many images there are",
    "what is true of the images as a whole, such as that they are all digits",
    "one person in several images (k of them multiply the distance by k; see above)",
    "the same image at another client, or in another --state directory",
    "settings that were chosen by looking at these images, and figures measured on them",
    "someone who reads this machine: its disk, its memory, or how long it computes",
)
NOT_BY_MASK_NOISE: Final = (
    "which classes the images are of, where labels are used: the client names them (mask-noise)"
)
GROUP: Final = 10


def read_ledgers(directory: Path) -> dict[Path, list[Entry]]:
    """What is recorded in a client's state directory, or for each client of a run; by directory.

    Raises:
        ConfigError: it is neither.
        StorageError: a ledger was tampered with.
    """
    clients = sorted(path for path in directory.glob("clients/*") if path.is_dir())
    if not clients:
        if not any((directory / name).exists() for name in ("client.json", "ledger.jsonl")):
            raise ConfigError(f"{directory} is neither a client's --state nor a run's directory")
        clients = [directory]
    return {path: Ledger(path).entries() for path in clients}


def report(held: dict[Path, list[Entry]]) -> list[str]:
    """What holds for every client, and what that does not cover: lines for a person."""
    lines = []
    for path, entries in held.items():
        lines += [str(path), *(f"  {line}" for line in statement(entries))]
    if any(map(_total, held.values())):
        lines += ["Not covered:", *(f"  {line}" for line in NOT_COVERED)]
        if any(entry.mechanism == "mask-noise" for entries in held.values() for entry in entries):
            lines.append(f"  {NOT_BY_MASK_NOISE}")
    return lines


def summary(entries: list[Entry]) -> dict[str, Any]:
    """What holds, for a program; `epsilon` is None without a guarantee."""
    total = _total(entries)
    return {
        "guarantee": "record-level, replace-one, n public" if total else None,
        "epsilon": total[0] if total else None,
        "delta": total[1] if total else None,
        "releases": sum(entry.mechanism != "none" for entry in entries),
        "images": sorted({entry.n for entry in entries}),
    }


def statement(entries: list[Entry]) -> list[str]:
    """What holds for one client, and for which releases: lines for a person."""
    total = _total(entries)
    lines = []
    if not entries:
        lines.append(f"{NONE}: nothing was recorded here")
    elif total is None:
        lines.append(f"{NONE}: at least one run trained on these images without a mechanism")
    else:
        epsilon, delta = total
        scope = "entire run" if len(entries) == 1 else f"all {len(entries)} releases together"
        if any(entry.mechanism == "mask-noise" for entry in entries):
            scope = f"{len(entries)} releases so far, each further round adds one"
        lines.append(
            f"Record-level ({epsilon:.4g}, {delta:g})-differential privacy, replace-one, "
            f"n public, {scope}"
        )
        mu = compose(entry.mu for entry in entries)
        group = gaussian_epsilon(GROUP * mu, delta)
        lines.append(f"{GROUP} images of one person together: epsilon {group:.4g}")
    for _, group_ in groupby(entries, key=lambda e: (e.run, e.mechanism, e.release)):
        lines.append(_describe(list(group_)))
    return lines


def _total(entries: list[Entry]) -> tuple[float, float] | None:
    """(epsilon, delta) of everything together, for a record that was in all of it."""
    deltas = [entry.delta for entry in entries if entry.delta is not None]
    if not deltas:
        return None
    epsilon = total_epsilon(entries, min(deltas))
    return None if math.isinf(epsilon) else (epsilon, min(deltas))


def _describe(entries: list[Entry]) -> str:
    first, encoder = entries[0], entries[0].encoder
    features = f"{encoder['name']} layers {' '.join(map(str, encoder['layers']))}"
    features += "" if encoder["pool"] is None else f" pooled to {encoder['pool']}"
    if first.mechanism == "none":
        return f"{first.time}  no mechanism, {first.n} images, {features}"
    if first.mechanism == "mask-noise":
        what = f"mask-noise, {len(entries)} times"
    elif first.classes:
        what = f"moments of all {first.classes} classes, {first.features} features ({features})"
    else:
        what = f"two moments of {first.features} features ({features})"
    return (
        f"{first.time}  {what}, {first.n} images, sensitivity {first.sensitivities[0]:.3g}, "
        f"noise {first.sigmas[0]:.3g} a coordinate, each ({first.epsilon:g}, {first.delta:g})"
    )
