"""Which updates of a round are left out because they lie far from the others: robust = "trim".

An update moves the next state by what it differs from the current one, so that difference is what
is bounded: the positions in which a mask differs from the state's, and the sum by which scores or
weights differ. Honest clients differ by about as much, whatever images they have; a mask that is
inverted, filled or drawn at random differs in half of the positions or more. With m the median of
a round's distances and s the median of |distance - m|, an update is left out if its distance is
more than

    m + max(4 s, m / 2, 0.01 a parameter),

for a mask also if it lies beyond the middle between m and a mask drawn by tossing coins, which
differs in half of the positions. Of an even number the upper median counts, so of one or two
updates none is left out, and of more by each kind of values fewer than half. It is in integers,
and does not depend on the order of arrival.

Not told apart is an update of honest size in a harmful direction: this bounds what a client can do,
it does not judge what it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from common.config import RunConfig
from server.figures import UNITS, Distance, Figures

SPREADS: Final = 4
"""Median deviations from the median that are allowed in any case."""


def left_out(config: RunConfig, figures: Mapping[str, Figures]) -> tuple[str, ...]:
    """Names of the updates that the run does not count, sorted.

    Args:
        config: the run.
        figures: of all updates of a round, by client.
    """
    if config.robust == "none":
        return ()
    names = sorted(figures)
    by_kind = zip(*(figures[name].distances for name in names), strict=True)
    far = set()
    for distances in by_kind:
        most = bound(distances)
        far |= {name for name, d in zip(names, distances, strict=True) if d.total > most}
    return tuple(sorted(far))


def bound(distances: Sequence[Distance]) -> int:
    """The largest distance of those of one kind that is not left out; see the module.

    Args:
        distances: one for each update; all of one kind and count.
    """
    kind, count = distances[0].kind, distances[0].count
    totals = [distance.total for distance in distances]
    typical = _median(totals)
    spread = _median([abs(total - typical) for total in totals])
    most = typical + max(SPREADS * spread, typical // 2, count * UNITS[kind] // 100)
    if kind == "mask":
        most = min(most, max(typical, (typical + count // 2) // 2))
    return most


def _median(values: Sequence[int]) -> int:
    """The upper one of an even number."""
    return sorted(values)[len(values) // 2]
