"""The running average of the states, from which models are exported.

Feature matching circles its target: the moving averages of a client's loss go on pushing until
the difference that they follow has changed its sign, so each state is off by some other bit. The
mean over the last rounds is closer to what they circle than any of them. It is the server's
alone: nobody trains on it, and it costs no byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.cells import NO_CELLS, CellTable
from common.config import RunConfig
from common.state import PROB_ONE, GlobalState, logit, sigma
from server.recovered import like

_ARRAY: Final = "average"
_TAUGHT: Final = "taught"
_CELLS: Final = "cells of "
"""The client's name follows."""


@dataclass(frozen=True)
class ModelSource:
    """What a model is made of.

    Attributes:
        state: the mean state, or the last.
        unseen: labels that no client has trained on; none where labels are ignored.
        cells: the latest of each client that has trained, by its name; none without cells.
    """

    state: GlobalState
    unseen: tuple[int, ...] = ()
    cells: CellTable = NO_CELLS

    @property
    def round(self) -> int:
        """Rounds closed so far."""
        return self.state.round


class StateAverage:
    """A mean over rounds with weights that grow as a power of the round.

    After t rounds a state's weight has fallen to (1 - 1/t)^(1 / share) of what it was a round
    before, so the mean reaches back over about the last `share` of the rounds, however many there
    are (the power-function average of Karras et al., arXiv 2312.02696, section 3.1). Masks are
    averaged as theta, weights as they are; in float32, elementwise, so the same on every machine.

    Args:
        config: the run; `output.average` is the share.
        state: what training starts from.
    """

    def __init__(self, config: RunConfig, state: GlobalState) -> None:
        self._share = config.output.average
        self._last = state
        self._mean: NDArray[np.float32] = _averaged(state)
        self._taught = np.zeros(len(config.classes), dtype=np.uint8)
        self._cells: dict[str, CellTable] = {}

    def add(
        self,
        state: GlobalState,
        taught: Iterable[int] = (),
        cells: Mapping[str, CellTable] | None = None,
    ) -> None:
        """Take in what a round made.

        Args:
            state: that the round ended in; rounds count from 1.
            taught: labels that its clients trained on.
            cells: that its clients trained on, by the client's name; where a name returns, its
                latest table counts.
        """
        self._last = state
        self._taught[list(taught)] = 1
        self._cells |= {name: table for name, table in (cells or {}).items() if table}
        if self._share:
            kept = np.float32((1 - 1 / state.round) ** (1 / self._share))
            self._mean *= kept
            self._mean += (1 - kept) * _averaged(state)

    @property
    def source(self) -> ModelSource:
        """What to export."""
        unseen = np.flatnonzero(self._taught == 0) if self._taught.any() else ()
        # By name, so that the model does not depend on who was first.
        cells = CellTable.union(self._cells[name] for name in sorted(self._cells))
        return ModelSource(self.state, tuple(map(int, unseen)), cells)

    @property
    def state(self) -> GlobalState:
        """The state to export: the mean, or the last state itself where `output.average` is 0."""
        if not self._share:
            return self._last
        if self._last.values.dtype == np.float32:
            return GlobalState(self._last.round, self._mean.copy())
        theta = np.rint(self._mean * PROB_ONE).clip(1, PROB_ONE - 1).astype(np.uint16)
        return GlobalState(self._last.round, logit(theta))

    def snapshot(self) -> Mapping[str, NDArray[Any]]:
        """What `restore` needs besides the state, for the checkpoint."""
        mean = {_ARRAY: self._mean} if self._share else {}
        taught = {_TAUGHT: self._taught} if self._taught.size else {}
        cells = {
            _CELLS + name: np.frombuffer(table.content, np.uint8)
            for name, table in self._cells.items()
        }
        return {**mean, **taught, **cells}

    def restore(self, state: GlobalState, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a checkpoint; raises KeyError and ValueError where it is of another run."""
        self._last = state
        if self._share:
            self._mean = like(self._mean, arrays[_ARRAY]).copy()
        if self._taught.size:
            self._taught = like(self._taught, arrays[_TAUGHT]).copy()
        self._cells = {
            key.removeprefix(_CELLS): CellTable.read(array.tobytes())
            for key, array in arrays.items()
            if key.startswith(_CELLS)
        }


def _averaged(state: GlobalState) -> NDArray[np.float32]:
    """(d,) what of a state is averaged."""
    if state.values.dtype == np.float32:
        return state.weights.copy()
    return sigma(state.scores).astype(np.float32) / np.float32(PROB_ONE)
