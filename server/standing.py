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
    """It has no session, and is in the cohort or missed deadlines."""
    AWAITED = "awaited"
    """It was here before a restart of the server, and may yet come back."""


def standings(rounds: Rounds, now: float) -> dict[str, Standing]:
    """All who are here, awaited, in the cohort or missed, sorted by name."""
    live, awaited = set(rounds.members.live(now)), set(rounds.members.awaited(now))
    cohort, missed = set(rounds.cohort), set(rounds.attendance.absences)
    found = {}
    for name in sorted(live | awaited | cohort | missed):
        stage = rounds.updates.stage(name)
        if stage is Stage.IN:
            found[name] = Standing.DONE
        elif name not in live:
            found[name] = Standing.AWAITED if name in awaited else Standing.GONE
        elif name not in cohort:
            out = rounds.attendance.left_out(name, rounds.round)
            found[name] = Standing.LEFT_OUT if out else Standing.WAITING
        else:
            found[name] = Standing.TRAINING if stage is None else Standing.SENDING
    return found
