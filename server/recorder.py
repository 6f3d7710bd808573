"""What a run leaves in its directory for people, besides the journal.

    metrics.jsonl, comm.jsonl: see `server.books`
    evaluation.jsonl  one line an evaluation, where the server has images of its own
    tensorboard/      metrics, figures of single updates, evaluations, and the pictures
    samples/, samples.png: see `server.pictures`
    model.prism       the latest model

Lines are written in one thread, in order. Drawing, exporting and evaluating take longer and
have threads of their own. No round waits for any of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from common.config import RunConfig
from common.data import ImageSource
from common.timestamps import utc_now
from server.average import ModelSource
from server.books import Books
from server.evaluation import Evaluation
from server.exporter import Exporter
from server.latest import log_failure, lower_priority
from server.line_file import LineFile, Mark
from server.metrics import Metrics
from server.pictures import Pictures
from server.recent import Recent
from server.telemetry import Telemetry
from server.traffic import Traffic

DRAWN: Final = 100
"""The largest cohort whose single updates are scalars too; metrics.jsonl has them of any."""

log = logging.getLogger(__name__)


class Recorder:
    """The files of one run directory.

    Args:
        out: the run directory.
        config: the run.
        round_: the round that the server (re)starts at.
        books: take the lines of calls; closed by whoever made them.
        images: to compare the model with, if the server has any.
        features: that the distance to them is taken on.

    Attributes:
        telemetry: the figures that Prometheus may ask for.
        recent: what a person may ask for.

    Raises:
        StorageError, OSError: evaluation.jsonl is not what the server wrote, or cannot be read.
    """

    def __init__(
        self,
        out: Path,
        config: RunConfig,
        round_: int,
        books: Books,
        images: ImageSource | None,
        features: str,
    ) -> None:
        self.telemetry = Telemetry()
        self.recent = Recent()
        self.telemetry.started(round_, config.rounds)
        self._rounds = config.rounds
        self._books = books
        self._evaluations: LineFile | None = None
        self._evaluated = -1
        if images is not None:
            self._evaluations, lines = LineFile.open(out / "evaluation.jsonl", Mark())
            self._evaluated = max((line["round"] for line in lines), default=-1)
            for line in lines[-1:]:
                self._tell_evaluation(line)
        self._sums: dict[tuple[int, str, str, str], Traffic] = {}
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
        self.telemetry.closed(metrics)
        self.recent.closed(metrics.seconds)
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
        if self._evaluation is not None and self._evaluated != model.round:
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
        if self._evaluations is not None:
            self._evaluations.close()
        if self._events is not None:
            try:
                self._events.close()
            except OSError as error:
                log_failure(log, "could not write the run's outputs", error)

    def _do(self, job: Callable[..., None], *args: object) -> None:
        self._thread.submit(job, *args).add_done_callback(_report)

    def _open_events(self, directory: Path, round_: int) -> None:
        # Pictures and evaluations of the state that the rounds go on from bear its number.
        self._events = SummaryWriter(str(directory), purge_step=round_ + 1)

    def _write_traffic(self, traffic: Traffic) -> None:
        if not traffic.summed:
            self._books.calls(traffic.line())
            return
        sums = self._sums.get(traffic.kind)
        self._sums[traffic.kind] = traffic if sums is None else sums + traffic

    def _write_sums(self) -> None:
        sums, self._sums = self._sums, {}
        self._books.calls(*(traffic.line() for traffic in sums.values()))

    def _write_metrics(self, metrics: Metrics) -> None:
        self._write_sums()
        if self._events is not None:
            for name, value in metrics.line().items():
                if name != "round" and isinstance(value, (int, float)):
                    self._events.add_scalar(name, value, metrics.round)
            for client, row in metrics.updates.items() if len(metrics.updates) <= DRAWN else ():
                for name, value in row.items():
                    if value is not None:
                        self._events.add_scalar(f"update_{name}/{client}", value, metrics.round)

    def _tell_evaluation(self, line: dict[str, Any]) -> None:
        self.telemetry.evaluated(line)
        self.recent.evaluated(line)

    def _write_evaluation(self, line: dict[str, Any]) -> None:
        self._tell_evaluation(line)
        if self._evaluations is not None:
            self._evaluations.append({**line, "time": utc_now()})
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
        log_failure(log, "could not write the run's outputs", error)
