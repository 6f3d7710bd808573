"""The model file of a run, model.prism, and its picture, made while the rounds go on.

The model is written last: where there is one of a round, so is the round's picture.
"""

from __future__ import annotations

import logging
from pathlib import Path

from common.config import RunConfig
from common.errors import ModelFileError
from common.model.export import build_model, final_parameters, load_model
from server.average import ModelSource
from server.latest import LatestWorker, log_failure
from server.pictures import Pictures

log = logging.getLogger(__name__)


class Exporter:
    """Exports the latest state that it was given, in a thread of low priority.

    Args:
        config: the run.
        out: the run's directory.
        pictures: where the picture of each exported model is kept.
    """

    def __init__(self, config: RunConfig, out: Path, pictures: Pictures) -> None:
        self._config = config
        self._model = out / "model.prism"
        self._pictures = pictures
        self._worker: LatestWorker[ModelSource] = LatestWorker("exporter", self._export, _failed)

    def due(self, source: ModelSource) -> bool:
        """Whether a state is one that is exported: each `sample_every` rounds, and the last."""
        every = self._config.output.sample_every
        return source.round == self._config.rounds or bool(every and source.round % every == 0)

    def done(self, source: ModelSource) -> bool:
        """Whether the model file is of that state."""
        try:
            model = load_model(self._model)
        except ModelFileError:
            return False
        expected = final_parameters(self._config, source.state)
        return (model.round, model.parameters.tobytes()) == (source.round, expected.tobytes())

    def submit(self, source: ModelSource) -> None:
        """Export a state, or a later one that comes before its turn."""
        self._worker.submit(source)

    def close(self) -> None:
        """End the thread after the state that was submitted last is exported."""
        self._worker.close(finish=True)

    def _export(self, source: ModelSource) -> None:
        model = build_model(self._config, source.state, source.unseen, source.cells)
        self._pictures.save(model)
        model.save(self._model)
        log.info("model of round %d: %s", source.round, self._model)


def _failed(error: Exception) -> None:
    """A file that cannot be written is no reason to stop the rounds, but one to say so."""
    log_failure(log, "could not draw samples or export the model", error)
