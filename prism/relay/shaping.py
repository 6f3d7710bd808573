"""How slow a link is: rate and delay, as people write them, and when a chunk comes through."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from common.errors import ConfigError

_BIT_RATES: Final = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_SECONDS: Final = {"ms": 1e-3, "s": 1.0}
_BURST_SECONDS: Final = 0.02
_SLICE_SECONDS: Final = 0.01
_LARGEST_CHUNK: Final = 64 * 1024
_SMALLEST_CHUNK: Final = 1024


@dataclass(frozen=True)
class Shape:
    """What a link does to each of its two directions.

    Attributes:
        rate: bit/s; None is as fast as this machine.
        delay: seconds, one way.
    """

    rate: float | None = None
    delay: float = 0.0

    @property
    def chunk(self) -> int:
        """Bytes to take at a time, so that a slow link flows instead of gushing."""
        if self.rate is None:
            return _LARGEST_CHUNK
        return max(_SMALLEST_CHUNK, min(_LARGEST_CHUNK, int(self.rate / 8 * _SLICE_SECONDS)))

    @classmethod
    def parse(cls, rate: str | None, delay: str | None) -> Shape:
        """Read options such as "1mbit" and "50ms".

        Raises:
            ConfigError: they are not of that form, not above zero, or not finite.
        """
        return cls(
            None if rate is None else _quantity("--rate", rate, _BIT_RATES, "1mbit"),
            0.0 if delay is None else _quantity("--delay", delay, _SECONDS, "50ms"),
        )


class Bucket:
    """A token bucket: the time at which each chunk has left a link of limited rate.

    A link that was idle may make up for at most 20 ms of it, which is what a late timer costs.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free = 0.0

    def take(self, size: int, now: float) -> float:
        """When the last of `size` bytes is on its way, seconds on the clock of `now`."""
        if self._rate is None:
            return now
        self._free = max(self._free, now - _BURST_SECONDS) + 8 * size / self._rate
        return max(now, self._free)


def _quantity(option: str, text: str, units: dict[str, float] | dict[str, int], such: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    value = float(found[1]) * units.get(found[2], 0) if found else 0.0
    if not value or not math.isfinite(value):
        raise ConfigError(f"{option} {text}: write a number and {' or '.join(units)}, as in {such}")
    return value
