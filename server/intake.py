"""Updates on their way in: who may send one now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.background import Background
from server.events import Claimed
from server.rounds import Rounds
from server.upload import Upload


class Intake:
    """The uploads of one engine.

    Args:
        rounds: gives out the tickets.
        work: has the calls that wait.
    """

    def __init__(self, rounds: Rounds, work: Background) -> None:
        self._rounds = rounds
        self._work = work

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
        given up at its end. Raises as `Rounds.claim` does.
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
        try:
            yield Upload(claimed, sizes, self._rounds.check)
        finally:
            self._rounds.release(claimed)
