"""The answer to GetStatus: where the run stands, and each of its clients."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from common.rpc.prism.v1 import federation_pb2 as pb
from common.wire import fingerprint_to_pb
from server.engine import Engine
from server.standing import standings


def status_to_pb(engine: Engine) -> pb.GetStatusResponse:
    """All that there is to say; see `without_names`."""
    rounds, recent, now = engine.rounds, engine.recorder.recent, time.monotonic()
    status = pb.GetStatusResponse(
        run_name=engine.config.name,
        fingerprint=fingerprint_to_pb(engine.fingerprint),
        phase=rounds.phase.value,
        round=rounds.round,
        rounds=engine.config.rounds,
        state_digest=engine.broadcast.digest,
        clients=_clients(engine, now),
        waits_for=rounds.describe(now),
        phase_seconds=recent.phase_seconds(now),
        seconds_left=recent.seconds_left(engine.config.rounds - rounds.round),
        problems=[pb.Problem(**asdict(problem)) for problem in recent.problems],
    )
    if recent.quality is not None:
        round_, figures = recent.quality
        status.quality.CopyFrom(pb.Quality(round=round_, figures=figures))
    return status


def without_names(status: pb.GetStatusResponse) -> None:
    """Take out what tells who takes part."""
    for client in status.clients:
        client.name = ""
    status.ClearField("waits_for")
    status.ClearField("problems")


def _clients(engine: Engine, now: float) -> list[pb.ClientStatus]:
    rounds, measured, absences = engine.rounds, engine.measured, engine.absences()
    cohort, submitted = set(rounds.cohort), set(rounds.submitted)
    clients = []
    for name, standing in standings(rounds, now).items():
        client = pb.ClientStatus(
            name=name,
            in_cohort=name in cohort,
            submitted=name in submitted,
            standing=standing,
            measured=_measured_to_pb(measured[name]) if name in measured else None,
        )
        if (absence := absences.get(name)) is not None:
            client.missed, client.left_out_until = absence.missed, absence.until
        clients.append(client)
    return clients


def _measured_to_pb(row: Mapping[str, Any]) -> pb.MeasuredUpdate:
    """The message of a row of `server.figures.table`."""
    return pb.MeasuredUpdate(
        density=row["density"],
        from_state=row["from_state"],
        from_cohort=row["from_cohort"],
        moved=row["moved"],
        payload_bytes=row["bytes"],
        seconds=row["seconds"],
        left_out=row["left_out"],
    )
