"""Updates on their way in: who may send one now, how much at once, and for how long.

Of a client's calls the newest counts. An older one, or one whose round or session is over, is
ended at once and lets go of its bytes; it is not left to wait for what it would send next.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from common.errors import Busy, PrismError, TransportError
from server import heap
from server.background import Background
from server.events import Claimed, Ticket
from server.rounds import Rounds
from server.upload import Upload

STREAMS_PER_CLIENT: Final = 8
"""Updates and states that one session may have under way at once."""
STREAMS: Final = 4096
"""Likewise of all sessions."""
BYTES: Final = 64 * 2**20
"""Of payloads that are taken in at once, as their headers declare them; one always may be."""
TURN_SECONDS: Final = 20.0
"""How long an update waits for its turn before its client is asked to come again."""
RETRY_SECONDS: Final = 5.0
"""When to come again."""
IDLE_SECONDS: Final = 60.0
"""Longest silence within an update; a link may be down for that long."""
UPLOAD_SECONDS: Final = 600.0
"""Longest time that an update may take; as long as clients give it."""


class Budget:
    """Bytes that may be held at once; who finds too few waits, in order of arrival."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, amount: int) -> int:
        """Wait for an amount; what is to be given back, which is never more than there is."""
        amount = min(amount, self._total)
        if self._waiting or amount > self._free:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((amount, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self.give(amount)
                self._next()
                raise
        else:
            self._free -= amount
        return amount

    @property
    def waiting(self) -> int:
        """How many wait for their amount."""
        return len(self._waiting)

    def give(self, amount: int) -> None:
        """Give an amount back."""
        self._free += amount
        self._next()

    @property
    def idle(self) -> bool:
        """Whether nothing is held."""
        return self._free == self._total

    def _next(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._free):
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= amount
                turn.set_result(None)


class Intake:
    """The uploads of one engine.

    Args:
        rounds: gives out the tickets.
        work: has the calls that wait.
    """

    def __init__(self, rounds: Rounds, work: Background) -> None:
        self._rounds = rounds
        self._work = work
        self._budget = Budget(BYTES)
        self._passed = 0
        self._streams: Counter[str] = Counter()
        self._open = 0
        self._reading: dict[Ticket, asyncio.Timeout] = {}
        self._newest: dict[str, Ticket] = {}

    @contextmanager
    def stream(self, session: str) -> Iterator[None]:
        """Count a stream of a session for as long as it takes.

        Raises:
            Busy: there are too many.
        """
        if self._streams[session] >= STREAMS_PER_CLIENT:
            raise Busy(f"{STREAMS_PER_CLIENT} streams of this client are open", RETRY_SECONDS)
        if self._open >= STREAMS:
            raise Busy(f"{STREAMS} streams are open: the server is busy", RETRY_SECONDS)
        self._streams[session] += 1
        self._open += 1
        try:
            yield
        finally:
            self._streams[session] -= 1
            self._open -= 1
            if not self._streams[session]:
                del self._streams[session]

    @asynccontextmanager
    async def upload(
        self,
        session: str,
        round_: int,
        place: tuple[int, int],
        digest: bytes,
        sizes: tuple[int, ...],
    ) -> AsyncIterator[Upload | None]:
        """Claim the place of an update, for a block that takes it in and submits it.

        Gives None if this very update is durable already. What the block did not submit is
        given up at its end.

        Raises:
            Busy: too many bytes are on their way in.
            PrismError: as `Rounds.claim` and `Rounds.check` say.
        """
        while True:
            self._work.check_running()
            claimed = self._rounds.claim(session, round_, place, digest)
            if claimed is not Claimed.STORING:
                break
            await self._work.calls.of(self._rounds.members.name_of(session)).wait()
        if claimed is Claimed.DUPLICATE:
            yield None
            return
        self.end(claimed.name)
        self._newest[claimed.name] = claimed
        held, upload = 0, Upload(claimed, session, sizes, self._rounds.check)
        try:
            busy = Busy("too many updates are on their way in: try again", RETRY_SECONDS)
            async with self._while_wanted(claimed, session, TURN_SECONDS, busy):
                held = await self._budget.take(sum(sizes))
            yield upload
        finally:
            # The traceback of an error would hold it until the next collection of garbage.
            upload.drop()
            self._budget.give(held)
            self._rounds.release(claimed)
            if self._newest.get(claimed.name) == claimed:
                del self._newest[claimed.name]
            self._passed += held
            if self._budget.idle and self._passed >= heap.WORTH:
                self._passed = 0
                self._work.spawn(asyncio.to_thread(heap.give_back))

    async def read(self, upload: Upload, pieces: AsyncIterator[bytes]) -> None:
        """Take in the payload of an update, piece by piece.

        Raises:
            TransportError: it takes too long.
            PrismError: as `Upload.add` and `Rounds.check` say.
        """
        slow = TransportError(
            f"no bytes of the update for {IDLE_SECONDS:.0f} s, or not all within "
            f"{UPLOAD_SECONDS:.0f} s: send it again"
        )
        loop = asyncio.get_running_loop()
        until = loop.time() + UPLOAD_SECONDS
        async with self._while_wanted(upload.ticket, upload.session, IDLE_SECONDS, slow) as scope:
            async for piece in pieces:
                upload.add(piece)
                scope.reschedule(min(until, loop.time() + IDLE_SECONDS))

    @property
    def uploads(self) -> dict[str, int]:
        """How many updates are on their way in, by what is done about them."""
        queued, storing = self._budget.waiting, self._rounds.updates.storing
        sending = max(0, len(self._reading) - queued)
        return {"queued": queued, "sending": sending, "storing": storing}

    def end(self, name: str) -> None:
        """End the reading of a client's update, if there is one: it is not wanted any more."""
        ticket = self._newest.pop(name, None)
        scope = self._reading.pop(ticket, None) if ticket else None
        if scope is not None:
            scope.reschedule(asyncio.get_running_loop().time())

    def end_all(self) -> None:
        """End the reading of all updates: their attempt is over."""
        for name in list(self._newest):
            self.end(name)

    @asynccontextmanager
    async def _while_wanted(
        self, ticket: Ticket, session: str, seconds: float, late: PrismError
    ) -> AsyncIterator[asyncio.Timeout]:
        """Run a block that `end` ends, or the time, which raises `late`."""
        try:
            async with asyncio.timeout(seconds) as scope:
                self._reading[ticket] = scope
                yield scope
        except TimeoutError:
            self._rounds.members.name_of(session)
            self._rounds.check(ticket)
            raise late from None
        finally:
            self._reading.pop(ticket, None)
