"""What a client says about its update, besides the update."""

from __future__ import annotations

from dataclasses import dataclass

from common.cells import NO_CELLS, CellTable
from common.theory import MaskBits


@dataclass(frozen=True)
class Report:
    """Figures that travel with an update.

    Attributes:
        loss: mean over the local steps, finite; None where there is none to tell.
        bits: what theory says that the update's mask takes; None without a mask.
        classes: labels that the client trains on, ascending; none where labels are ignored.
        cells: that the client trains on; none where the run has none.
    """

    loss: float | None = None
    bits: MaskBits | None = None
    classes: tuple[int, ...] = ()
    cells: CellTable = NO_CELLS
