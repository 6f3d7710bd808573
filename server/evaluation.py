"""Comparing the model with images that the server has, while the run goes on.

The images are the server operator's own to use: public ones, or held out from the clients'
data by whoever owns them. Nothing of a client's data is needed here, and nothing is sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.config import RunConfig
from common.data import ImageSource, labels_in, open_source
from common.errors import ConfigError
from common.model.export import build_model
from common.quality import NAMES, Evaluator, evaluator_of, score_model
from server.average import ModelSource
from server.latest import LatestWorker, log_failure
from server.pictures import Pictures

IMAGES: Final = 5000
"""Images of each side, at most."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationOptions:
    """What the server was started with.

    Attributes:
        data: as `--data` of a client; None where the server has no images.
        data_dir: where its files lie.
        features: that the distance is taken on.
    """

    data: str | None = None
    data_dir: Path | None = None
    features: str = "lenet"

    def open(self, config: RunConfig) -> ImageSource | None:
        """The images, or None where none are wanted.

        Raises:
            ConfigError: the options and `output.evaluate_every` do not fit together.
            DataError: the images cannot be found, or are of other classes than the run draws.
        """
        every = config.output.evaluate_every
        if self.data is None:
            if every:
                raise ConfigError(
                    f"output.evaluate_every = {every} needs images to compare the model with: "
                    "give --eval-data"
                )
            return None
        if not every:
            raise ConfigError("--eval-data is never used: set output.evaluate_every above 0")
        if self.features not in NAMES:
            raise ConfigError(f"--features {self.features}: choose {', '.join(NAMES)}")
        source = open_source(self.data, self.data_dir, train=False)
        if self.features == "lenet" and source.labels is None:
            raise ConfigError(f"--features lenet needs labels, and {self.data} has none: use small")
        if config.classes and source.labels is not None:
            labels_in(source, config.classes)
        return source


NO_EVALUATION: Final = EvaluationOptions()
"""The server has no images of its own."""


class Evaluation:
    """Evaluates the latest state that it was given, in a thread of low priority.

    Args:
        config: the run.
        source: images to compare the model with.
        features: that the distance is taken on.
        out: the run's directory; what was computed of the images is kept in its `cache`.
        pictures: where the picture of each evaluated model is kept.
        report: told in the thread of each evaluation, with its line of evaluation.jsonl.
    """

    def __init__(
        self,
        config: RunConfig,
        source: ImageSource,
        features: str,
        out: Path,
        pictures: Pictures,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._config = config
        self._source = source
        self._features = features
        self._out = out
        self._pictures = pictures
        self._report = report
        self._evaluator: Evaluator | None = None
        self._worker: LatestWorker[ModelSource] = LatestWorker("evaluation", self._run, _failed)

    def due(self, model: ModelSource) -> bool:
        """Whether a state is one that is evaluated: each `evaluate_every` rounds, and the last."""
        last = model.round == self._config.rounds
        return last or model.round % self._config.output.evaluate_every == 0

    def submit(self, model: ModelSource) -> None:
        """Evaluate a model, or a later one that comes before its turn."""
        self._worker.submit(model)

    def close(self, *, finish: bool) -> None:
        """End the thread.

        Args:
            finish: whether the state that was submitted last is still evaluated.
        """
        self._worker.close(finish=finish)

    def _run(self, source: ModelSource) -> None:
        started = time.monotonic()
        judge = self._judge()
        model = build_model(self._config, source.state, source.unseen, source.cells)
        self._pictures.save(model)
        images, intended = judge.draw(model, min(IMAGES, len(self._source)))
        self._worker.check()
        quality = judge.evaluate(images, intended).as_dict()
        if intended is not None and source.round == self._config.rounds:
            quality["accuracy_score"] = score_model(model, self._source, progress=self._check)
        seconds = round(time.monotonic() - started, 3)
        self._report({"round": source.round, **quality, "seconds": seconds})
        log.info(
            "round %d: %s %.4g on %d images",
            source.round,
            judge.distance_name,
            quality[judge.distance_name],
            len(images),
        )

    def _judge(self) -> Evaluator:
        if self._evaluator is None:
            log.info("preparing %s features of %d images", self._features, len(self._source))
            classes = self._config.classes
            if classes and self._source.labels is None:
                log.warning("%s has no labels: classes are not judged", self._source.name)
                classes = ()
            self._evaluator = evaluator_of(
                self._source,
                IMAGES,
                self._config.model.image_size,
                self._config.channels,
                self._features,
                classes=classes,
                cache=self._out / "cache",
                progress=self._check,
            )
        return self._evaluator

    def _check(self, *_: int) -> None:
        self._worker.check()


def _failed(error: Exception) -> None:
    """What cannot be evaluated is no reason to stop the rounds, but one to say so."""
    log_failure(log, "could not evaluate the model", error)
