"""How much of the server one address, or one client, can take up. Pure, like `rounds`.

Budgets are token buckets: so much at once, and as much again in each minute. They are far above
what clients of a run need, also where all of them share one address, and they are the same for
everybody: where nothing proves a name, a stranger is not told from a client. What is spent within
a session is charged to its client, all else to the address.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Callable
from typing import Final

from common.config import RunConfig
from common.errors import Busy
from common.layout import codec_of, update_layout

MINUTE: Final = 60.0
QUESTIONS: Final = 300
"""Calls of GetStatus."""
LEAST_JOINS: Final = 20
JOINS_PER_CLIENT: Final = 4
"""Two are needed to take part, and one after a restart of the server."""
LEAST_WASTE: Final = 16 * 2**20
WASTED_UPDATES: Final = 4
"""Updates of every client that may come to nothing, besides the least."""
FETCHES: Final = 2
"""Times that a client needs a round's state: by differences, then as a keyframe."""
TELL_SECONDS: Final = 10.0
_MOST_KEYS: Final = 4096


class Budget:
    """Token buckets by key; one that was not used for a minute is full.

    Args:
        amount: at once, and again in each minute.
    """

    def __init__(self, amount: float) -> None:
        self.amount = amount
        self._spent: dict[str, tuple[float, float]] = {}

    def wait(self, key: str, now: float) -> int:
        """Whole seconds until something is left; 0 if something is."""
        over = self._level(key, now) - self.amount
        return math.ceil(over / self.amount * MINUTE) if over > 0 else 0

    def spend(self, key: str, now: float, amount: float) -> None:
        """Take an amount, and into debt if it is more than is left; a minute's worth at most."""
        spent = min(self._level(key, now) + amount, 2 * self.amount)
        self._spent.pop(key, None)
        self._spent[key] = spent, now
        while len(self._spent) > _MOST_KEYS:
            del self._spent[next(iter(self._spent))]

    def _level(self, key: str, now: float) -> float:
        spent, since = self._spent.get(key, (0.0, now))
        return max(0.0, spent - (now - since) * self.amount / MINUTE)


class Limits:
    """The budgets of one run.

    Args:
        config: says how many clients are usual, and how long their updates are.
    """

    def __init__(self, config: RunConfig) -> None:
        clients = config.data.clients
        update = sum(
            codec_of(segment).max_bytes(segment.count) for segment in update_layout(config)
        )
        self._joins = Budget(LEAST_JOINS + JOINS_PER_CLIENT * clients)
        self._questions = Budget(QUESTIONS)
        self._waste = Budget(LEAST_WASTE + WASTED_UPDATES * clients * update)
        self.most_sessions = LEAST_JOINS + JOINS_PER_CLIENT * clients
        self._sessions: dict[str, str] = {}
        self._held: Counter[str] = Counter()
        self._fetches: dict[str, tuple[int, int]] = {}
        self._told: dict[str, float] = {}

    def call(self, rpc: str, host: str, now: float) -> None:
        """A call that needs no session.

        Raises:
            Busy: there were too many from the address.
        """
        budget = {"Join": self._joins, "GetStatus": self._questions}.get(rpc)
        if budget is None:
            return
        key = network(host)
        if wait := budget.wait(key, now):
            raise Busy(f"too many calls of {rpc} from {host}", wait)
        budget.spend(key, now, 1)
        if wait := self._waste.wait(key, now):
            raise Busy(f"too many bytes from {host} came to nothing", wait)

    def session(self, client: str, now: float) -> None:
        """A call within a session.

        Raises:
            Busy: too many bytes of the client came to nothing.
        """
        if wait := self._waste.wait(f"client {client}", now):
            raise Busy(f"too many bytes of {client} came to nothing", wait)

    def enrol(self, host: str, alive: Callable[[str], bool]) -> None:
        """A session is to be opened under a name that nothing proves.

        Args:
            host: of the caller.
            alive: whether a session is not over.

        Raises:
            Busy: the address has half of all the sessions that a run may have, or there is none
                left.
        """
        key, most = network(host), self.most_sessions
        if len(self._sessions) >= most or self._held[key] >= most // 2:
            self._sessions = {token: key for token, key in self._sessions.items() if alive(token)}
            self._held = Counter(self._sessions.values())
        if len(self._sessions) >= most:
            raise Busy("this run has as many sessions as it takes", MINUTE / 2)
        if self._held[key] >= most // 2:
            raise Busy(f"{self._held[key]} sessions of {host} are open", MINUTE / 2)

    def opened(self, host: str, session: str) -> None:
        """A session was opened."""
        self._sessions[session] = network(host)
        self._held[network(host)] += 1

    def wasted(self, host: str, client: str, size: int, now: float) -> None:
        """A call with so many bytes came to nothing."""
        self._waste.spend(f"client {client}" if client else network(host), now, size)

    def fetched(self, client: str, round_: int, size: int, now: float) -> None:
        """A client was sent a state; more often than it can need is waste."""
        last, times = self._fetches.get(client, (round_, 0))
        times = times + 1 if last == round_ else 1
        if times > FETCHES:
            self._waste.spend(f"client {client}", now, size)
        self._fetches[client] = round_, times
        while len(self._fetches) > _MOST_KEYS:
            del self._fetches[next(iter(self._fetches))]

    def tells(self, host: str, now: float) -> bool:
        """Whether a refusal by a limit is to be told, or was a moment ago."""
        key = network(host)
        if now - self._told.get(key, -TELL_SECONDS) < TELL_SECONDS:
            return False
        if len(self._told) >= _MOST_KEYS:
            self._told.clear()
        self._told[key] = now
        return True


def network(host: str) -> str:
    """What stands for a host: of IPv6 the first half of the address, which is one customer's."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
