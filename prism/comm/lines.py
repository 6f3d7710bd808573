"""Lines of a run's JSONL files, checked as they are read: people edit files, and copy them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import StorageError
from common.theory import MOST_BITS

Direction: TypeAlias = Literal["up", "down"]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Bits: TypeAlias = Annotated[float, Field(ge=0, le=MOST_BITS)]


class _Line(BaseModel):
    model_config = ConfigDict(strict=True)


class Figures(_Line):
    """What theory says, of a round or of an update."""

    round: Count
    kl_bits: Bits | None = None
    cross_entropy_bits: Bits | None = None
    entropy_bits: Bits | None = None


class Closed(Figures):
    """Of metrics.jsonl: a round, and the updates that went in."""

    clients: Count = 0


class Round(Closed):
    """The same line, with what training said and how long it took."""

    loss: float | None = None
    seconds: Annotated[float, Field(ge=0)] = 0.0


class Evaluated(_Line):
    """Of evaluation.jsonl: rounds that were closed, and figures under their own names."""

    model_config = ConfigDict(strict=True, extra="allow")
    round: Count

    def figures(self) -> dict[str, float]:
        """All of them that are numbers."""
        extra = self.model_extra or {}
        return {name: float(value) for name, value in extra.items() if isinstance(value, float)}


class Call(Figures):
    """Of comm.jsonl: calls of one kind in one direction, and theory where it was an update."""

    client: str
    rpc: str
    direction: Direction
    payload_bytes: Count
    message_bytes: Count
    calls: Count


class Counts(_Line):
    """Of relay/CLIENT.jsonl: the sums of one relay so far."""

    relay: str
    connections: Count
    tls: bool
    up_received: Count
    up_delivered: Count
    down_received: Count
    down_delivered: Count


Line = TypeVar("Line", bound=_Line)


def read_lines(path: Path, kind: type[Line], *, seams: bool = False) -> Iterator[Line]:
    """The complete lines of a file, which may still grow.

    With `seams`, whoever was killed in the middle of a line may have had a successor that wrote
    on there; what came of that line is left out.

    Raises:
        StorageError: the file cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    return
                try:
                    line = kind.model_validate_json(raw)
                except ValidationError as error:
                    wrong = error.errors(include_url=False, include_input=False)[0]
                    if seams and wrong["type"] == "json_invalid":
                        continue
                    what = ": ".join([*map(str, wrong["loc"]), wrong["msg"]])
                    raise StorageError(
                        f"{path}, line {number}: not what this program writes: {what}"
                    ) from error
                yield line
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
