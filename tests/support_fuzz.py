"""Fuzzing: good inputs, spoilt by a seed, and what may come of reading them.

A reader may take what it is given or raise one of the project's own errors, with a text that a
terminal can show, a line a mistake. Whatever else comes of an input is a fault. The input is then
printed as a line for `tests/known/fuzz.json`, whose cases are tried first, every time.
"""

from __future__ import annotations

import base64
import json
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import PrismError

KNOWN = Path(__file__).parent / "known" / "fuzz.json"
MOST_SECONDS = 5.0
"""Of processor time, for any input."""
MOST_KILOBYTES = 300_000
"""That the process may grow by, for all inputs of a target."""
_NUMBERS = (0, 1, -1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30)
_HOSTILE: tuple[Any, ...] = (
    *_NUMBERS,
    *(-n for n in _NUMBERS),
    *(0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")),
    *(
        None,
        True,
        False,
        "",
        "x",
        "0",
        "-1",
        "1e400",
        "\x00",
        "\x1b[2J",
        "é\u202e\ud800",
        "../../x",
    ),
    *([], {}, [[]], [None], {"": None}, "9" * 5000, "a" * 5000, "0x" + "f" * 5000),
)
"""What stands where something else belongs; all of it can be written as JSON."""
_DEEP = 5000
"""Lists within lists."""


@dataclass(frozen=True)
class Target:
    """Something that reads bytes.

    Attributes:
        name: as the known cases have it.
        good: inputs that it reads.
        read: reads one.
        spoil: makes another input of a good one.
        cost: how long one takes, about, beside the others; dearer ones are tried less often.
        lines: whether an error may have several lines, one for each mistake.
    """

    name: str
    good: Sequence[bytes]
    read: Callable[[bytes], object]
    spoil: Callable[[random.Random, bytes], bytes]
    cost: float = 1.0
    lines: bool = False

    def known(self) -> list[bytes]:
        """Inputs that were once a fault."""
        cases = json.loads(KNOWN.read_text())
        return [base64.b64decode(case) for case in cases.get(self.name, ())]

    def fuzz(self, count: int, first: int = 0) -> None:
        """Read so many spoilt inputs, from a seed on."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(first, first + count):
            draw = random.Random(f"{self.name} {seed}")
            self.check(self.spoil(draw, draw.choice(self.good)))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < MOST_KILOBYTES, f"{self.name} took {grown} kB for {count} inputs"

    def check(self, content: bytes) -> None:
        """Read one input; AssertionError if anything comes of it that may not."""
        started = time.thread_time()
        try:
            self.read(content)
        except PrismError as error:
            self._check_text(str(error), content)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{what}: {self._case(content)}") from error
        assert time.thread_time() - started < MOST_SECONDS, f"too slow: {self._case(content)}"

    def _check_text(self, text: str, content: bytes) -> None:
        lines = text.splitlines() if self.lines else [text]
        for line in lines:
            assert line and line.isprintable(), f"not one line: {line!r}: {self._case(content)}"
            assert len(line) < 1000, f"a line of {len(line)}: {self._case(content)}"

    def _case(self, content: bytes) -> str:
        return f"a case of {self.name} for {KNOWN.name}: {base64.b64encode(content).decode()!r}"


def spoil_bytes(draw: random.Random, content: bytes) -> bytes:
    """Flip, set, cut, double, move and insert, once or a few times."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at, length = draw.randrange(len(data) + 1), draw.choice((1, 1, 2, 4, 8, 64))
        kind = draw.randrange(8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = draw.randbytes(length)
        elif kind == 5:
            data[at:at] = data[at : at + length]
        elif kind == 6:
            number = draw.choice(_NUMBERS) % 2**64
            data[at : at + 8] = number.to_bytes(8, draw.choice(("little", "big")))
        else:
            other = draw.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def spoil_json(draw: random.Random, content: bytes) -> bytes:
    """Put something else in the place of a value, take one away, or spoil the text."""
    if draw.random() < 0.1:
        return spoil_bytes(draw, content)
    if draw.random() < 0.002:
        return b"[" * _DEEP + b"]" * draw.choice((0, _DEEP))
    value = json.loads(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = _spoilt(draw, value)
    return json.dumps(value).encode()


def _spoilt(draw: random.Random, value: Any) -> Any:
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.05:
        return _other(draw, value)
    value = value.copy()
    if isinstance(value, dict):
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            # Under another name, which may be taken.
            value[draw.choice((*value, "", "x", key + "x"))] = value.pop(key)
            return value
    else:
        key = draw.randrange(len(value))
        if draw.random() < 0.1:
            value.insert(key, draw.choice((value[key], draw.choice(_HOSTILE))))
            return value
    if draw.random() < 0.1:
        del value[key]
    else:
        value[key] = _spoilt(draw, value[key])
    return value


def _other(draw: random.Random, value: Any) -> Any:
    """Something of the same type that is a little different, or anything at all."""
    if draw.random() < 0.4:
        if isinstance(value, str) and value:
            return spoil_bytes(draw, value.encode(errors="replace")).decode(errors="replace")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return draw.choice((value + 1, value - 1, -value, value * 2, float(value), str(value)))
    return draw.choice(_HOSTILE)


def spoil_text(draw: random.Random, content: bytes) -> bytes:
    """Change lines and words, or bytes."""
    if draw.random() < 0.3:
        return spoil_bytes(draw, content)
    lines = content.decode().splitlines(keepends=True) or [""]
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(lines))
        kind = draw.randrange(4)
        if kind == 0:
            lines[at:at] = [draw.choice(lines)]
        elif kind == 1 and len(lines) > 1:
            del lines[at]
        else:
            words = lines[at].split(" ")
            words[draw.randrange(len(words))] = _word(draw)
            lines[at] = " ".join(words)
            if draw.random() < 0.5:
                lines[at] += "\n"
    return "".join(lines).encode(errors="surrogatepass")


def spoil_pem(draw: random.Random, content: bytes) -> bytes:
    """Change what stands between the lines that begin and end a PEM block, or those lines too."""
    lines = content.split(b"\n")
    if draw.random() < 0.2:
        return spoil_bytes(draw, content)
    inner = base64.b64decode(b"".join(line for line in lines if not line.startswith(b"---")))
    return lines[0] + b"\n" + base64.encodebytes(spoil_bytes(draw, inner)) + lines[-2] + b"\n"


def _word(draw: random.Random) -> str:
    value = draw.choice(_HOSTILE)
    return value if isinstance(value, str) else json.dumps(value)
