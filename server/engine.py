"""Carries out what the round state machine asks for: threads, disk, clock; no gRPC.

One event loop owns the machine. One writer thread owns the journal and folds updates, so the
log's order is the order of everything that must survive. Decoding and aggregation run in
other threads. If the disk fails the server stops: what it cannot store it must not promise.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from common.config import RunConfig
from common.downlink import StateStep
from common.errors import WrongRound
from common.fingerprint import Fingerprint
from common.report import Report
from common.state import GlobalState
from server.aggregate import Closed
from server.attempt import Attempt
from server.attendance import Absence
from server.average import ModelSource, StateAverage
from server.background import Background, durable, wait_for
from server.broadcast import Broadcast
from server.evaluation import NO_EVALUATION, EvaluationOptions
from server.events import (
    Assignment,
    Closing,
    Effects,
    Finished,
    Interrupted,
    Missed,
    Opened,
    Phase,
    Replaced,
    Wait,
)
from server.figures import Rows, named
from server.intake import Intake
from server.journal import taken_up
from server.members import Members, Parted, PartitionGiven
from server.metrics import Metrics
from server.progress import Progress
from server.recorder import Recorder
from server.recovered import Checkpoint, Recovered, fitting
from server.rounds import Rounds
from server.start import start_state
from server.storage import Storage
from server.traffic import Meter
from server.upload import Upload

log = logging.getLogger(__name__)


class Engine:
    """One run of one server process; made, and taken up where it was, on the run directory.

    Attributes:
        config: the run.
        fingerprint: what clients must agree with.
        rounds: the state machine, for others to ask; events go through the engine.
        broadcast: the downlink.
        intake: where updates come in.
        recorder: the run's outputs.
        measured: what was measured of the updates of the last closed round, by client.

    Raises:
        ConfigError, DataError: the directory is not this run's, or is in use; or the images to
            evaluate with cannot be used.
        StorageError: the directory is damaged.
    """

    def __init__(
        self, config: RunConfig, out: Path, evaluated: EvaluationOptions = NO_EVALUATION
    ) -> None:
        self.config = config = taken_up(config, out)
        # Before the directory is this run's: what can fail is tried first.
        images = evaluated.open(config)
        self.fingerprint = Fingerprint.of(config)
        self.broadcast = Broadcast(config, start_state(config, out))
        self._average = StateAverage(config, self.broadcast.state)
        self._storage = Storage(out, config)
        try:
            found = self._storage.found
            with fitting(out):
                self._restore(found)
            books = self._storage.books
            self.recorder = Recorder(out, config, found.round, books, images, evaluated.features)
        except BaseException:
            self._storage.close()
            raise
        self._work = Background(self._storage.flush)
        self._progress = Progress()
        self.intake = Intake(self.rounds, self._work)

    def _restore(self, found: Recovered) -> None:
        """Take up the state, the members and the open round of the previous process."""
        now = time.monotonic()
        members = Members(
            self.config.data.clients,
            self.config.round.lease_seconds,
            self.config.grace_seconds,
            found.partitions,
        )
        before = set(found.cohort)
        self.measured: Rows = {}
        if found.checkpoint is not None:
            self.broadcast.restore(found.checkpoint.state, found.checkpoint.arrays)
            self._average.restore(found.checkpoint.state, found.checkpoint.arrays)
            before |= set(found.checkpoint.members)
            self.measured = found.checkpoint.metrics.get("updates", {})
        members.await_return(now, before)
        self.rounds = Rounds(self.config, members, found.round, found.absences)
        self._attempt: Attempt | None = None
        self._interrupted: Interrupted | None = None
        if found.cohort:
            self._attempt = Attempt(self.config, self.broadcast.state, len(found.cohort), now)
            for update in found.updates.values():
                rank = found.cohort.index(update.client)
                self._attempt.fold(self._attempt.decode(update, rank), update, rank)
            digests = {name: update.digest for name, update in found.updates.items()}
            self._interrupted = Interrupted(found.cohort, digests, found.closing, found.draw)
        if found.checkpoint is not None or found.cohort:
            log.info("resumed at round %d with %d updates in", found.round, len(found.updates))

    # What the service calls

    def renew(self, session: str) -> str:
        """Extend the lease of a session, and say whose it is; raises SessionUnknown."""
        return self.rounds.members.renew(time.monotonic(), session)

    def knows(self, session: str) -> bool:
        """Whether there is such a session."""
        return self.rounds.members.has(session)

    @property
    def finished(self) -> bool:
        """Whether all rounds are closed."""
        return self.rounds.phase is Phase.FINISHED

    def live(self) -> tuple[str, ...]:
        """Names of the clients that are here, sorted."""
        return self.rounds.members.live(time.monotonic())

    def absences(self) -> Mapping[str, Absence]:
        """Who missed the last deadline that it was asked to meet, and until when it is left out."""
        return self.rounds.attendance.absences

    async def join(
        self, name: str, instance: bytes, wants_partition: bool
    ) -> tuple[str, int | None]:
        """Open a session; (token, data partition). Raises as `Members.join` does."""
        self._work.check_running()
        session = secrets.token_urlsafe(16)
        now = time.monotonic()
        effects = self.rounds.join(now, name, instance, session, wants_partition)
        # Of an older session of the same name, calls may be waiting.
        self.intake.end(name)
        self._work.calls.wake(name)
        log.info("%s joined", name)
        await self._apply(effects)
        return session, self.rounds.members.partition(name)

    async def leave(self, session: str) -> None:
        """End a session, or nothing if it is gone already."""
        await self._apply(self.rounds.leave(time.monotonic(), session))

    async def expel(self, name: str) -> None:
        """End the session of a name, if it has one."""
        session = self.rounds.members.session_of(name)
        if session is not None:
            await self.leave(session)

    async def await_round(self, session: str, seconds: float) -> Assignment | Wait | Finished:
        """Wait for something to do, at most so long; raises SessionUnknown."""
        until = time.monotonic() + seconds
        if self.rounds.members.is_idle(session):
            await self._apply(self.rounds.ask(time.monotonic(), session))
        while True:
            self._work.check_running()
            now = time.monotonic()
            outcome = self.rounds.outcome(now, session)
            if not isinstance(outcome, Wait) or now >= until:
                return outcome
            name = self.rounds.members.name_of(session)
            await wait_for(self._work.calls.of(name), until - now)

    def steps(self, round_: int, held: tuple[int, bytes] | None) -> tuple[StateStep, ...]:
        """What brings a client from the state it holds to the state of a round.

        Raises:
            WrongRound: that is not the round that is open or next.
        """
        # While a round closes, another thread makes the broadcast's next state.
        if round_ != self.rounds.round or self.rounds.phase is Phase.CLOSING:
            raise WrongRound(
                f"the state of round {round_} is not the current one", self.rounds.round
            )
        return self.broadcast.steps(held)

    async def submit(self, upload: Upload, report: Report, meter: Meter) -> None:
        """Decode an update, make it durable and fold it; it may be acknowledged then.

        Once stored, an update is committed whatever becomes of the caller, and so are the bytes
        that the meter of its call has counted.

        Raises:
            PayloadError: the payload is not what its header declares, or does not decode.
            WrongRound, NotInCohort, AlreadyExists: as in `Rounds.check`.
        """
        ticket, attempt = upload.ticket, self._current_attempt()
        seconds = attempt.age(time.monotonic())
        update = upload.whole(report, meter.message["up"], seconds)
        contribution = await asyncio.to_thread(attempt.decode, update, ticket.rank)
        # The attempt is the ticket's: another one would make this raise.
        self.rounds.store(ticket)
        meter.journalled = True

        def store() -> None:
            self._storage.store(ticket.round, update)
            attempt.fold(contribution, update, ticket.rank)

        async def commit() -> None:
            await durable(self._work.write(store))
            effects = self.rounds.commit(time.monotonic(), ticket)
            self._work.calls.wake(ticket.name)
            await self._apply(effects)

        await asyncio.shield(self._work.spawn(commit()))

    # Life cycle

    async def run(self) -> None:
        """Run all rounds; returns when the last is closed or `stop` was called.

        Raises:
            PrismError, OSError: the run cannot go on; what was acknowledged is safe.
        """
        if self.finished:
            self.recorder.finish(self._average.source)
            return
        await self._apply(self.rounds.start(time.monotonic(), self._interrupted))
        while not (self._work.stopping or self.finished):
            await self._wait_for_event()
        self._work.raise_failure()

    async def linger(self, seconds: float) -> None:
        """Go on answering until all have heard that the run is over, at most so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._work.stopping:
            # Those from before a restart may still be on their way back.
            if not (self.rounds.members.count or self.rounds.members.awaits):
                return
            await self._wait_for_event(until)

    def stop(self) -> None:
        """Answer waiting clients with UNAVAILABLE and let `run` and `linger` return."""
        self._work.stop()

    async def close(self) -> None:
        """Finish what is being stored, flush, and give the directory back."""
        await self._work.close()
        await asyncio.to_thread(self.recorder.close)
        self._storage.close()

    async def _wait_for_event(self, until: float = math.inf) -> None:
        """Sleep to the next change or expiry, and let what is due run out."""
        self._work.raise_failure()
        if effects := self.rounds.tick(time.monotonic()):
            await self._apply(effects)
        now = time.monotonic()
        line = self.rounds.describe(now)
        until = min(until, self.rounds.next_deadline(), self._progress.say(now, line))
        await wait_for(self._work.changed, until - now)
        self._work.raise_failure()

    # The machine's effects

    async def _apply(self, effects: Effects) -> None:
        """Carry out effects in order; returns when what they must remember is durable."""
        written: asyncio.Future[None] | None = None
        for effect in effects:
            match effect:
                case Opened(round_, cohort):
                    state, size = self.broadcast.state, len(cohort)
                    self._attempt = Attempt(self.config, state, size, time.monotonic())
                    written = self._work.write(self._storage.journal.append_open, 0, cohort)
                    self._work.calls.wake(*cohort)
                    digest = self.broadcast.digest.hex()[:12]
                    log.info("round %d is open for %d clients, state %s", round_, size, digest)
                case Missed(round_, names):
                    written = self._work.write(self._storage.journal.append_missed, names)
                    self._progress.missed(round_, {n: self.absences()[n] for n in names})
                case Replaced(round_, draw, cohort, others):
                    written = self._work.write(self._storage.journal.append_open, draw, cohort)
                    for name in others:
                        self.intake.end(name)
                    self._work.calls.wake(*others, *others.values())
                    self._progress.replaced(round_, others)
                case Closing():
                    self.intake.end_all()
                    written = self._work.write(self._storage.journal.append_close)
                    self._work.spawn(self._close_round())
                case PartitionGiven(name, index):
                    written = self._work.write(self._storage.journal.append_partition, name, index)
                case Parted(name, reason):
                    self.intake.end(name)
                    self._work.calls.wake(name)
                    log.info("%s is gone: %s", name, reason)
        if self.finished:
            self._work.calls.wake_all()
        self._work.notify()
        if written is not None:
            await durable(written)

    async def _close_round(self) -> None:
        """Aggregate, broadcast, average, checkpoint; then tell the machine."""
        attempt = self._current_attempt()
        # The writer thread folds, so it is where everything is known to be folded.
        closed = await self._work.write(attempt.close, self._storage.journal.updates)
        state, source, metrics = await asyncio.to_thread(self._publish, attempt, closed)
        arrays = {**self.broadcast.snapshot(), **self._average.snapshot()}
        absences = dict(self.absences())
        point = Checkpoint(state, self.live(), metrics.line(), arrays, absences=absences)
        await self._work.write(self._storage.checkpoint, point)
        self.measured = metrics.updates
        self.recorder.closed(metrics, source)
        log.info("%s", metrics.describe())
        if metrics.left_out:
            told = named(metrics.updates, metrics.left_out)
            log.warning("round %d: left out, far from the others: %s", metrics.round, told)
        await self._apply(self.rounds.aggregated(time.monotonic()))

    def _publish(
        self, attempt: Attempt, closed: Closed
    ) -> tuple[GlobalState, ModelSource, Metrics]:
        state = self.broadcast.publish(closed)
        self._average.add(state, attempt.taught, attempt.cells)
        metrics = attempt.metrics(state, closed, time.monotonic())
        return state, self._average.source, metrics

    def _current_attempt(self) -> Attempt:
        if self._attempt is None:
            raise WrongRound(f"round {self.rounds.round} is not open", self.rounds.round)
        return self._attempt
