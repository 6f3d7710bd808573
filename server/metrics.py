"""What is known of a closed round: figures of its updates, and of the state that it made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.report import Report
from common.state import PROB_ONE, GlobalState, entropy_bits, sigma
from common.theory import MaskBits, figures
from common.timestamps import utc_now
from server.figures import Rows


@dataclass(frozen=True)
class Metrics:
    """One closed round.

    Attributes:
        round: that was closed.
        lam: MADA's lambda; None where the method has none.
        density: mean theta; None for a method that trains weights.
        entropy_bits: mean entropy of the mask, bits a parameter; likewise.
        bits: mean of what the clients reported of their masks; None if nobody did.
        clients: updates that went in.
        loss: mean of what the clients reported; None if nobody did.
        seconds: from opening to closing.
        updates: what was measured of each client's update, by name; see `server.figures.table`.
        time: of closing, ISO 8601 in UTC.
    """

    round: int
    lam: float | None
    density: float | None
    entropy_bits: float | None
    bits: MaskBits | None
    clients: int
    loss: float | None
    seconds: float
    updates: Rows
    time: str

    @classmethod
    def of(
        cls,
        state: GlobalState,
        lam: float | None,
        clients: int,
        reports: Sequence[Report],
        seconds: float,
        updates: Rows,
    ) -> Metrics:
        """Measure the state that closing a round made."""
        masked = state.values.dtype == np.int16
        losses = [report.loss for report in reports if report.loss is not None]
        return cls(
            round=state.round - 1,
            lam=lam,
            density=float(sigma(state.scores).mean() / PROB_ONE) if masked else None,
            entropy_bits=entropy_bits(state.scores) if masked else None,
            bits=MaskBits.mean(report.bits for report in reports),
            clients=clients,
            # Divided first: the sum of two finite losses may not be.
            loss=sum(loss / len(losses) for loss in losses) if losses else None,
            seconds=round(seconds, 3),
            updates=updates,
            time=utc_now(),
        )

    @property
    def left_out(self) -> list[str]:
        """Names of the clients whose updates were not counted, sorted."""
        return sorted(name for name, row in self.updates.items() if row["left_out"])

    def describe(self) -> str:
        """What there is to say of the round in one line."""
        lam = "-" if self.lam is None else f"{self.lam:.4f}"
        return f"round {self.round}: {self.clients} updates, lambda {lam}, {self.seconds:.1f} s"

    def line(self) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        return {
            "round": self.round,
            "lambda": self.lam,
            "density": self.density,
            "entropy_bits": self.entropy_bits,
            **figures(self.bits),
            "clients": self.clients,
            "loss": self.loss,
            "seconds": self.seconds,
            "left_out": self.left_out,
            "updates": self.updates,
            "time": self.time,
        }
