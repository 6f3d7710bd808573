"""Where each client stands in the round that is open: what a person asks first."""

from __future__ import annotations

from enum import StrEnum

from server.cohort import Stage
from server.rounds import Rounds


class Standing(StrEnum):
    """What a client does, as the server sees it."""

    WAITING = "waiting"
    """It is here and not in the cohort."""
    LEFT_OUT = "left out"
    """Likewise, because it missed deadlines."""
    TRAINING = "training"
    """It is in the cohort, and nothing of its update is here yet."""
    SENDING = "sending"
    """Its update is on its way in."""
    DONE = "done"
    """Its update is durable and counts."""
    GONE = "gone"
    """It is in the cohort, and has no session."""


def standings(rounds: Rounds, now: float) -> dict[str, Standing]:
    """All who are here or in the cohort, sorted by name."""
    live, cohort = set(rounds.members.live(now)), set(rounds.cohort)
    found = {}
    for name in sorted(live | cohort):
        stage = rounds.updates.stage(name)
        if stage is Stage.IN:
            found[name] = Standing.DONE
        elif name not in live:
            found[name] = Standing.GONE
        elif name not in cohort:
            out = rounds.attendance.left_out(name, rounds.round)
            found[name] = Standing.LEFT_OUT if out else Standing.WAITING
        else:
            found[name] = Standing.TRAINING if stage is None else Standing.SENDING
    return found
