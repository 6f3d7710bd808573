"""What one client process does: join, await a round, fetch, train, submit; and again.

Whatever the network does, the client backs off with jitter and says what it is waiting for;
it ends when the run is finished, when it is told to, or when nobody answered for too long.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from client.local_data import PrivateData
from client.messages import Assignment, Finished
from client.methods import make_trainer
from client.privacy_guard import Guard
from client.store import ClientStore, MadeUpdate
from client.telemetry import Doing, Telemetry
from client.transport import Transport
from client.update import encode_update, update_bits
from common.config import RunConfig, parse_config
from common.downlink import apply_steps, initial_state
from common.errors import (
    AlreadyExists,
    Busy,
    NotInCohort,
    PayloadError,
    PrismError,
    ProtocolError,
    SessionUnknown,
    StorageError,
    TransportError,
    WrongRound,
)
from common.fingerprint import Fingerprint
from common.layout import update_layout
from common.report import Report
from common.state import GlobalState

SHORTEST_BEAT, LONGEST_BEAT = 0.05, 3600.0
"""Seconds between heartbeats, whatever the server's lease."""

log = logging.getLogger("prism.client")
Result = TypeVar("Result")


class Client:
    """A client process's main object."""

    def __init__(
        self,
        transport: Transport,
        data: PrivateData,
        store: ClientStore,
        guard: Guard,
        patience: float,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._transport = transport
        self._data = data
        self._store = store
        self._guard = guard
        self._patience = patience
        self._telemetry = telemetry or Telemetry()
        self._name, self._instance = store.identity()
        self._lease = 30.0
        self._said = ""

    def run(self) -> None:
        """Take part until the run is finished.

        Raises:
            PrismError: what cannot be mended by trying again.
        """
        config, fingerprint = self._learn_run()
        self._enrol(fingerprint)
        with self._heartbeats():
            self._telemetry.does(Doing.PREPARING)
            self._prepare(config)
            while True:
                outcome = self._call(self._transport.await_round)
                if isinstance(outcome, Finished):
                    log.info("the run is finished after %d rounds", outcome.round)
                    break
                if isinstance(outcome, Assignment):
                    self._said = ""
                    self._take_part(outcome)
                else:
                    self._telemetry.does(Doing.WAITING)
                    self._say(f"waiting: {outcome.reason}")
        self.leave()

    def leave(self) -> None:
        """Tell the server that this client goes, if it can be told."""
        with contextlib.suppress(PrismError):
            self._transport.leave()

    def _learn_run(self) -> tuple[RunConfig, Fingerprint]:
        """Ask for the run's config, build weights and tables, and say what came out."""
        joined = self._patiently(
            lambda: self._transport.join(self._name, self._instance, None, wants_partition=False)
        )
        config = parse_config(joined.config_toml, source="the server's config")
        self._guard.agree(config)
        fingerprint = Fingerprint.of(config)
        fingerprint.check(joined.fingerprint)
        log.info(
            "run %s: %s, %d rounds, %d parameters",
            config.name,
            config.method,
            config.rounds,
            fingerprint.dimension,
        )
        return config, fingerprint

    def _enrol(self, fingerprint: Fingerprint) -> None:
        self._fingerprint = fingerprint
        joined = self._patiently(
            lambda: self._transport.join(
                self._name, self._instance, fingerprint, self._data.wants_partition
            )
        )
        if not joined.lease_seconds > 0:
            raise ProtocolError(f"the server gives leases of {joined.lease_seconds} s")
        self._lease = joined.lease_seconds
        self._partition = joined.partition
        log.info("joined as %s", self._name)

    def _prepare(self, config: RunConfig) -> None:
        """Load the private images, measure their features, and take up where this client was."""
        self._config = config
        self._held: GlobalState = initial_state(config)
        self._made: MadeUpdate | None = None
        encoder, moments = self._data.measure(config, self._name, self._partition, self._guard)
        self._trainer = make_trainer(config, encoder, moments, self._data.device)
        kept = self._store.load(self._fingerprint.run_id)
        if kept is not None:
            saved, self._made = kept
            try:
                self._trainer.load_state_dict(saved)
            except (KeyError, ValueError, RuntimeError) as error:
                raise StorageError(
                    "the trainer kept in --state does not fit this run; delete it to start afresh"
                ) from error
            log.info("took up the training state of round %d", self._made.round)

    def _take_part(self, assignment: Assignment) -> None:
        t = assignment.round
        if t >= self._config.rounds:
            # The run was extended, and what was agreed to was a shorter one.
            self._config, _ = self._learn_run()
            if t >= self._config.rounds:
                raise ProtocolError(f"round {t} of a run of {self._config.rounds} rounds")
        try:
            self._telemetry.does(Doing.FETCHING, t)
            state = self._call(lambda: self._fetch(assignment))
            made = self._made
            self._telemetry.does(Doing.TRAINING)
            if made is None or not _fits(made, assignment):
                made = self._made = self._train(assignment, state)
            layout = update_layout(self._config)
            segments = list(zip(layout, made.payloads, strict=True))
            run_id = self._fingerprint.run_id
            self._telemetry.does(Doing.SENDING)
            self._guard.check_report(self._config, made.report.loss)
            self._call(lambda: self._transport.submit(run_id, assignment, segments, made.report))
        except WrongRound as error:
            log.info("round %d: too late or for another place: %s", t, error)
            # What was made for an assignment that is over is void.
            self._made = None
        except NotInCohort as error:
            log.info("round %d goes on without this client: %s", t, error)
        except AlreadyExists as error:
            log.warning("round %d: %s", t, error)
        else:
            loss, size = made.report.loss, sum(len(payload) for payload in made.payloads)
            self._telemetry.moved("up", size)
            self._telemetry.acknowledged(loss)
            log.info(
                "round %d: state %s, loss %s, trained %.1f s, sent %d bytes",
                t,
                state.digest().hex()[:12],
                "-" if loss is None else f"{loss:.3g}",
                made.seconds,
                size,
            )

    def _fetch(self, assignment: Assignment) -> GlobalState:
        """The state of the round, by differences if they lead there, else by keyframe."""
        if self._held.digest() == assignment.state_digest:
            return self._held
        # Four bytes a parameter are the longest state that there is; then checksums and tables.
        limit = 4 * self._held.dimension + 65536
        for held in (self._held, None):
            try:
                steps = self._transport.fetch_state(assignment.round, held, limit)
                self._telemetry.moved("down", sum(len(step.payload) for step in steps))
                state = apply_steps(self._config, self._held, steps)
            except PayloadError as error:
                log.warning("state of round %d: %s", assignment.round, error)
                continue
            if (state.round, state.digest()) == (assignment.round, assignment.state_digest):
                self._held = state
                return state
            log.warning("state of round %d is another one than assigned", assignment.round)
        raise PayloadError(
            f"round {assignment.round}: neither differences nor a keyframe give the server's state"
        )

    def _train(self, assignment: Assignment, state: GlobalState) -> MadeUpdate:
        steps = self._config.train.local_steps
        log.info("round %d: training, %d steps", state.round, steps)
        last = time.monotonic()

        def progress(step: int, loss: float) -> None:
            nonlocal last
            self._telemetry.stepped()
            if time.monotonic() - last > 5:
                log.info("round %d: step %d/%d, loss %.3g", state.round, step, steps, loss)
                last = time.monotonic()

        result = self._trainer.train(state, self._name, progress)
        self._telemetry.trained(result.seconds)
        values = self._guard.values(self._config, state, result.values)
        payloads = encode_update(
            self._config,
            state,
            values,
            rank=assignment.rank,
            cohort_size=assignment.cohort_size,
            client=self._name,
        )
        loss = self._guard.reportable(self._config, result.loss)
        bits = update_bits(self._config, state, values)
        report = Report(loss, bits, self._trainer.classes, self._trainer.cells)
        made = MadeUpdate(
            assignment.round,
            assignment.rank,
            assignment.cohort_size,
            payloads,
            report,
            result.seconds,
        )
        self._store.save(self._fingerprint.run_id, self._trainer.state_dict(), made)
        return made

    def _call(self, call: Callable[[], Result]) -> Result:
        """Make a call in this session, joining again whenever the server has forgotten it."""
        delay = 0.0
        while True:
            try:
                return self._patiently(call)
            except SessionUnknown:
                self._say("the server does not know this session; joining again")
                if delay:
                    self._say("sessions keep ending: is another client using this name and state?")
                # Two clients with one identity would otherwise take turns without end.
                time.sleep(random.uniform(0, delay))
                delay = min(2 * delay + 1.0, 30.0)
                self._enrol(self._fingerprint)

    def _patiently(self, call: Callable[[], Result]) -> Result:
        """Make a call, backing off with full jitter while the server, or a place, is not there."""
        started, delay, troubled = time.monotonic(), 0.5, False
        while True:
            try:
                with self._telemetry.errors.counted():
                    result = call()
            except Busy as error:
                # It answers, so patience starts anew; spread out, so that not all are back at once.
                self._say(f"{error}; again in {error.seconds:.0f} s")
                time.sleep(error.seconds + random.uniform(0, error.seconds / 2))
                started, delay, troubled = time.monotonic(), 0.5, True
            except TransportError as error:
                left = started + self._patience - time.monotonic()
                if left <= 0:
                    raise
                troubled = True
                self._say(f"{error}; trying again for up to {left:.0f} s")
                # Jitter spreads clients out after an outage; nothing reproducible hangs on it.
                time.sleep(min(left, random.uniform(0.1, delay)))
                delay = min(delay * 2, 15.0)
            else:
                if troubled:
                    self._said = ""
                return result

    def _say(self, line: str) -> None:
        """Log what this client waits for, once until it changes."""
        key = line.partition(";")[0]
        if key != self._said:
            log.info("%s", line)
            self._said = key

    @contextlib.contextmanager
    def _heartbeats(self) -> Iterator[None]:
        """Renew the lease from a thread while the main one trains."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(min(max(self._lease / 3, SHORTEST_BEAT), LONGEST_BEAT)):
                # The main thread's next call meets the same trouble, and deals with it.
                with contextlib.suppress(PrismError):
                    self._transport.heartbeat()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _fits(made: MadeUpdate, assignment: Assignment) -> bool:
    """Whether the update that is at hand answers an assignment."""
    return (made.round, made.rank, made.cohort_size) == (
        assignment.round,
        assignment.rank,
        assignment.cohort_size,
    )
