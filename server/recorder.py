"""What a run leaves in its directory for people, besides the journal.

    metrics.jsonl     one line a closed round
    comm.jsonl        one line a call and direction; polls and heartbeats one a round
    evaluation.jsonl  one line an evaluation, where the server has images of its own
    tensorboard/      the metrics and evaluations as scalars, and the pictures
    samples/, samples.png: see `server.pictures`
    model.prism       the latest model

Lines are written in one thread, in order. Drawing, exporting and evaluating take longer and
have threads of their own. No round waits for any of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from common.config import RunConfig
from common.data import ImageSource
from common.theory import MaskBits, figures
from server.average import ModelSource
from server.evaluation import Evaluation
from server.exporter import Exporter
from server.jsonl import cut_lines, last_round
from server.latest import lower_priority
from server.metrics import Metrics
from server.pictures import Pictures

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
        images: to compare the model with, if the server has any.
        features: that the distance to them is taken on.
    """

    def __init__(
        self,
        out: Path,
        config: RunConfig,
        round_: int,
        last: dict[str, Any] | None,
        images: ImageSource | None,
        features: str,
    ) -> None:
        self._rounds = config.rounds
        self._evaluations = out / "evaluation.jsonl"
        cut_lines(out / "metrics.jsonl", round_)
        cut_lines(out / "comm.jsonl")
        self._metrics = (out / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        self._comm = (out / "comm.jsonl").open("a", encoding="utf-8", buffering=1)
        if last is not None and last_round(out / "metrics.jsonl") != last["round"]:
            self._metrics.write(json.dumps(last) + "\n")
        self._sums: dict[tuple[int, str, str, str], list[int]] = {}
        self._with_bits: set[tuple[int, str]] = set()
        self._events: SummaryWriter | None = None
        self._thread = ThreadPoolExecutor(1, "recorder", initializer=lower_priority)
        self._do(self._open_events, out / "tensorboard", round_)
        self._ended = False
        pictures = Pictures(
            out, lambda drawn, picture: self._do(self._write_picture, drawn, picture)
        )
        self._exporter = Exporter(config, out, pictures)
        self._evaluation: Evaluation | None = None
        if images is not None:
            cut_lines(self._evaluations, round_ + 1)
            self._evaluation = Evaluation(
                config,
                images,
                features,
                out,
                pictures,
                lambda line: self._do(self._write_evaluation, line),
            )

    def traffic(self, traffic: Traffic) -> None:
        """Note a call."""
        self._do(self._write_traffic, traffic)

    def closed(self, metrics: Metrics, model: ModelSource) -> None:
        """Note a closed round; export and evaluate a state if it is time.

        Args:
            metrics: of the round.
            model: what to make one of.
        """
        self._do(self._write_metrics, metrics)
        if self._exporter.due(model):
            self._exporter.submit(model)
        if self._evaluation is not None and self._evaluation.due(model):
            self._evaluation.submit(model)
        self._ended = model.round == self._rounds

    def finish(self, model: ModelSource) -> None:
        """Export and evaluate the final state if the previous process left that undone."""
        if not self._exporter.done(model):
            self._exporter.submit(model)
        if self._evaluation is not None and last_round(self._evaluations) != model.round:
            self._evaluation.submit(model)
        self._ended = True

    def close(self) -> None:
        """Write what is still to be written, and close the files.

        What is to be exported is exported. What is to be evaluated is evaluated if the run has
        ended, else given up.
        """
        if self._evaluation is not None:
            self._evaluation.close(finish=self._ended)
        self._exporter.close()
        self._do(self._write_sums)
        self._thread.shutdown(wait=True)
        if self._events is not None:
            self._events.close()
        self._metrics.close()
        self._comm.close()

    def _do(self, job: Callable[..., None], *args: object) -> None:
        self._thread.submit(job, *args).add_done_callback(_report)

    def _open_events(self, directory: Path, round_: int) -> None:
        # Pictures and evaluations of the state that the rounds go on from bear its number.
        self._events = SummaryWriter(str(directory), purge_step=round_ + 1)

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
        with self._evaluations.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        if self._events is not None:
            for name, value in line.items():
                if isinstance(value, float) and name != "seconds":
                    self._events.add_scalar(f"evaluation/{name}", value, line["round"])
            self._events.flush()

    def _write_picture(self, round_: int, picture: Image.Image) -> None:
        if self._events is not None:
            pixels = np.asarray(picture.convert("RGB"))
            self._events.add_image("samples", pixels, round_, dataformats="HWC")
            self._events.flush()


def _report(future: Future[None]) -> None:
    """A file that cannot be written is no reason to stop the rounds, but one to say so."""
    error = future.exception()
    if error is not None:
        log.error("could not write the run's outputs: %s", error, exc_info=error)
