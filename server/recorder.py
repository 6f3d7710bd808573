"""What a run leaves in its directory for people, besides the journal.

    metrics.jsonl     one line a closed round
    comm.jsonl        one line a call and direction; polls and heartbeats one a round
    tensorboard/      the metrics as scalars, and sample grids
    samples.png       the latest grid
    model.prism       the generator, as of the latest grid
    evaluation.jsonl  one line an evaluation, where the server has images to hold it against

Everything runs in one thread of low priority, in order, so that no round waits for it;
evaluations, which take longer, in another.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch.utils.tensorboard import SummaryWriter

from common.config import RunConfig
from common.errors import ModelFileError
from common.model.export import build_model, load_model
from common.model.grid import image_grid, save_grid
from common.state import GlobalState
from common.theory import MaskBits, figures
from server.evaluation import NO_EVALUATION, Evaluation, EvaluationOptions
from server.jsonl import cut_lines, last_round
from server.metrics import Metrics

SAMPLES: Final = 64
_NICE: Final = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Traffic:
    """What one call moved in one direction.

    Attributes:
        round: that the call belonged to.
        client: name; empty where the caller has none.
        direction: "up" is from the client to the server.
        rpc: name of the method.
        payload_bytes: of updates and states, as their codecs made them.
        message_bytes: of the protobuf messages.
        summed: whether to add the round's calls up and write them as one line.
        bits: of the mask that the call brought, as its client reported them.
    """

    round: int
    client: str
    direction: Literal["up", "down"]
    rpc: str
    payload_bytes: int
    message_bytes: int
    summed: bool = False
    bits: MaskBits | None = None


class Recorder:
    """The files of one run directory.

    Args:
        out: the run directory.
        config: the run.
        round_: the round that the server (re)starts at; later lines of metrics are cut.
        last: the metrics of the round before, written if a crash lost them.
        evaluated: which images the server has to hold the model against.

    Raises:
        ConfigError, DataError: those images cannot be used; see `EvaluationOptions.open`.
    """

    def __init__(
        self,
        out: Path,
        config: RunConfig,
        round_: int,
        last: dict[str, Any] | None,
        evaluated: EvaluationOptions = NO_EVALUATION,
    ) -> None:
        source = evaluated.open(config)
        self._out = out
        self._config = config
        cut_lines(out / "metrics.jsonl", round_)
        cut_lines(out / "comm.jsonl")
        self._metrics = (out / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        self._comm = (out / "comm.jsonl").open("a", encoding="utf-8", buffering=1)
        if last is not None and last_round(out / "metrics.jsonl") != last["round"]:
            self._metrics.write(json.dumps(last) + "\n")
        self._sums: dict[tuple[int, str, str, str], list[int]] = {}
        self._with_bits: set[tuple[int, str]] = set()
        self._events: SummaryWriter | None = None
        self._wanted: GlobalState | None = None
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "recorder", initializer=_lower_priority)
        self._do(self._open_events, round_)
        self._ended = False
        self._evaluation: Evaluation | None = None
        if source is not None:
            cut_lines(out / "evaluation.jsonl", round_ + 1)
            self._evaluation = Evaluation(
                config,
                source,
                evaluated.features,
                out,
                lambda line: self._do(self._write_evaluation, line),
                _lower_priority,
            )

    def traffic(self, traffic: Traffic) -> None:
        """Note a call."""
        self._do(self._write_traffic, traffic)

    def closed(self, metrics: Metrics, state: GlobalState) -> None:
        """Note a closed round, and draw samples of the state to export if it is time."""
        self._do(self._write_metrics, metrics)
        every = self._config.output.sample_every
        if state.round == self._config.rounds or (every and state.round % every == 0):
            self._draw_soon(state)
        self._ended = state.round == self._config.rounds
        if self._evaluation is not None and self._evaluation.due(state):
            self._evaluation.soon(state)

    def finish(self, state: GlobalState) -> None:
        """Make sure that the final model is there, whatever an earlier life left undone."""
        try:
            done = load_model(self._out / "model.prism").round == state.round
        except ModelFileError:
            done = False
        if not done:
            self._draw_soon(state)
        self._ended = True
        lines = self._out / "evaluation.jsonl"
        if self._evaluation is not None and last_round(lines) != state.round:
            self._evaluation.soon(state)

    def close(self) -> None:
        """Write what is still to be written, and close the files.

        An evaluation that is under way is finished where the run is, else given up.
        """
        if self._evaluation is not None:
            self._evaluation.close(finish=self._ended)
        self._do(self._write_sums)
        self._thread.shutdown(wait=True)
        if self._events is not None:
            self._events.close()
        self._metrics.close()
        self._comm.close()

    def _do(self, job: Callable[..., None], *args: object) -> None:
        self._thread.submit(job, *args).add_done_callback(_report)

    def _open_events(self, round_: int) -> None:
        self._events = SummaryWriter(str(self._out / "tensorboard"), purge_step=round_)

    def _write_traffic(self, traffic: Traffic) -> None:
        if traffic.summed:
            key = (traffic.round, traffic.client, traffic.direction, traffic.rpc)
            entry = self._sums.setdefault(key, [0, 0, 0])
            for i, value in enumerate((traffic.payload_bytes, traffic.message_bytes, 1)):
                entry[i] += value
            return
        # The acknowledgement of an update that is in may have been lost: it counts once.
        update = (traffic.round, traffic.client)
        counted = update in self._with_bits
        if traffic.bits is not None:
            self._with_bits.add(update)
        self._write_comm(
            traffic.round,
            traffic.client,
            traffic.direction,
            traffic.rpc,
            [traffic.payload_bytes, traffic.message_bytes, 1],
            None if counted else traffic.bits,
        )

    def _write_sums(self) -> None:
        for (round_, client, direction, rpc), sums in self._sums.items():
            self._write_comm(round_, client, direction, rpc, sums)
        self._sums.clear()

    def _write_comm(
        self,
        round_: int,
        client: str,
        direction: str,
        rpc: str,
        sums: list[int],
        bits: MaskBits | None = None,
    ) -> None:
        line = {
            "round": round_,
            "client": client,
            "direction": direction,
            "rpc": rpc,
            "payload_bytes": sums[0],
            "message_bytes": sums[1],
            "calls": sums[2],
            **(figures(bits) if bits else {}),
        }
        self._comm.write(json.dumps(line) + "\n")

    def _write_metrics(self, metrics: Metrics) -> None:
        self._write_sums()
        self._with_bits = {update for update in self._with_bits if update[0] > metrics.round}
        line = metrics.line()
        self._metrics.write(json.dumps(line) + "\n")
        if self._events is not None:
            for name, value in line.items():
                if name != "round" and value is not None:
                    self._events.add_scalar(name, value, metrics.round)

    def _write_evaluation(self, line: dict[str, Any]) -> None:
        with (self._out / "evaluation.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        if self._events is not None:
            for name, value in line.items():
                if isinstance(value, float) and name != "seconds":
                    self._events.add_scalar(f"evaluation/{name}", value, line["round"])
            self._events.flush()

    def _draw_soon(self, state: GlobalState) -> None:
        """Draw samples of a state, or of a later one that comes before their turn."""
        with self._lock:
            queued, self._wanted = self._wanted is not None, state
        if not queued:
            self._do(self._draw)

    def _draw(self) -> None:
        with self._lock:
            state, self._wanted = self._wanted, None
        if state is None:
            return
        model = build_model(self._config, state)
        images = model.sample(SAMPLES, seed=0)
        save_grid(images, self._out / "samples.png")
        if self._events is not None:
            self._events.add_image("samples", image_grid(images), state.round)
            self._events.flush()
        model.save(self._out / "model.prism")
        log.info("samples of round %d: %s", state.round, self._out / "samples.png")


def _report(future: Future[None]) -> None:
    """A file that cannot be written is no reason to stop the rounds, but one to say so."""
    error = future.exception()
    if error is not None:
        log.error("could not write the run's outputs: %s", error, exc_info=error)


def _lower_priority() -> None:
    # Drawing is never urgent, and torch's threads would spin beside the clients' training.
    torch.set_num_threads(1)
    # On Linux the priority is a thread's own, and the threads that it starts inherit it.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
