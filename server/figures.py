"""What the server measures of each update, to be shown and to tell which lie far from the others.

An update is measured once, when it is decoded; what is kept of it does not grow with the model.
All figures that decide anything are integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from common.masks import Mask, hamming, unpack
from common.state import SCORE_UNIT

UNITS: Final = {"mask": 1, "score": SCORE_UNIT, "weight": 1 << 20}
"""Of distances: one position, one logit, one."""
SKETCH: Final = 4096
"""Positions of a mask, evenly spaced, in which clients are compared with each other."""
Said = NDArray[np.int8]
Rows = Mapping[str, Mapping[str, Any]]
"""The figures of a round by client, as `table` makes them."""


@dataclass(frozen=True)
class Distance:
    """How far the values of one kind lie from the state that training started from.

    Attributes:
        kind: of the values.
        total: positions in which masks differ, or the sum of absolute differences, in 1 / UNITS.
        count: parameters.
    """

    kind: Literal["mask", "score", "weight"]
    total: int
    count: int

    @property
    def mean(self) -> float:
        """Of a parameter: a share of the positions, logits, or weight."""
        return self.total / (self.count * UNITS[self.kind])


@dataclass(frozen=True)
class Figures:
    """What is measured of one update.

    Attributes:
        density: share of ones in the mask; None without a mask.
        distances: from the state, one for each kind of values that the update has.
        said: (at most SKETCH,) what the mask says in the positions that are compared: M - R, or
            M where no reference is shared; empty without a mask.
        payload_bytes: of the update.
        seconds: from the opening of the round until it was in.
    """

    density: float | None = None
    distances: tuple[Distance, ...] = ()
    said: Said = field(default_factory=lambda: np.empty(0, dtype=np.int8))
    payload_bytes: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, mask: Mask | None, like: Mask, *others: Distance, shared: bool = False) -> Figures:
        """Measure a decoded update.

        Args:
            mask: M, what the client sent; None without a mask.
            like: R, the mask of the state that client and server share, or the state's own.
            others: distances of what else the update has.
            shared: whether it is R.
        """
        if mask is None:
            return cls(distances=others)
        n, step = len(mask), -(-len(mask) // SKETCH)
        said = unpack(mask[::step]).astype(np.int8)
        if shared:
            said -= unpack(like[::step]).astype(np.int8)
        distance = Distance("mask", hamming(mask, like), n)
        return cls(mask.count(1) / n, (distance, *others), said)

    def arrived(self, payload_bytes: int, seconds: float) -> Figures:
        """The same, with what is known of its way here."""
        return replace(self, payload_bytes=payload_bytes, seconds=seconds)


def from_cohort(figures: Mapping[str, Figures]) -> dict[str, float]:
    """How far the masks of a cohort lie from their mean, by client; empty without masks.

    Mean over the compared positions of |said - mean of what all said|; with sampled positions,
    right to about 0.01.
    """
    said = {name: figure.said for name, figure in figures.items() if figure.said.size}
    total, count = np.zeros(1, dtype=np.int32), len(said)
    for own in said.values():
        total = total + own
    # One after the other: a thousand clients at once would take a hundred megabytes.
    return {
        name: int(np.abs(own.astype(np.int32) * count - total).sum()) / (own.size * count)
        for name, own in said.items()
    }


def table(figures: Mapping[str, Figures], left_out: tuple[str, ...]) -> Rows:
    """The figures of a round by client, sorted by name, ready for JSON.

    `from_state` and `from_cohort` are shares of the positions of the mask, `moved` is the mean
    absolute difference of what travelled as scores, in logits, or as weights.
    """
    apart = from_cohort(figures)
    rows: dict[str, dict[str, Any]] = {}
    for name in sorted(figures):
        figure = figures[name]
        away = {distance.kind: distance.mean for distance in figure.distances}
        rows[name] = {
            "density": figure.density,
            "from_state": away.get("mask"),
            "from_cohort": apart.get(name),
            "moved": away.get("score", away.get("weight")),
            "bytes": figure.payload_bytes,
            "seconds": round(figure.seconds, 3),
            "left_out": name in left_out,
        }
    return rows


def named(rows: Rows, names: Iterable[str]) -> str:
    """Clients and how far their updates lie from the state, for a person; of rows of `table`."""
    told = []
    for name in names:
        away, moved = rows[name]["from_state"], rows[name]["moved"]
        parts = [] if away is None else [f"{away:.1%} of its mask differs from the state's"]
        parts += [] if moved is None else [f"values moved by {moved:.3g}"]
        told.append(f"{name} ({', '.join(parts)})")
    return ", ".join(told)
