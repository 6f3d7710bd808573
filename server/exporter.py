"""Pictures and the model file of a run, made while its rounds go on.

    samples.png   the latest grid of samples
    model.prism   the generator they were drawn from

The model is written last: where there is one of a round, so are the round's samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from torch import Tensor

from common.config import RunConfig
from common.errors import ModelFileError
from common.model.export import build_model, load_model
from common.model.grid import save_grid
from server.average import ModelSource
from server.latest import LatestWorker

SAMPLES: Final = 64
"""Images of a grid."""

log = logging.getLogger(__name__)


class Exporter:
    """Exports the latest state that it was given, in a thread of low priority.

    Args:
        config: the run.
        out: the run's directory.
        drawn: told in the thread of each drawing: the round, and its samples as
            (SAMPLES, channels, size, size) uint8.
    """

    def __init__(self, config: RunConfig, out: Path, drawn: Callable[[int, Tensor], None]) -> None:
        self._config = config
        self._samples = out / "samples.png"
        self._model = out / "model.prism"
        self._drawn = drawn
        self._worker: LatestWorker[ModelSource] = LatestWorker("exporter", self._export, _failed)

    def due(self, source: ModelSource) -> bool:
        """Whether a state is one that is exported: each `sample_every` rounds, and the last."""
        every = self._config.output.sample_every
        return source.round == self._config.rounds or bool(every and source.round % every == 0)

    def done(self, source: ModelSource) -> bool:
        """Whether the model file is of that state's round."""
        try:
            return load_model(self._model).round == source.round
        except ModelFileError:
            return False

    def submit(self, source: ModelSource) -> None:
        """Export a state, or a later one that comes before its turn."""
        self._worker.submit(source)

    def close(self) -> None:
        """End the thread after the state that was submitted last is exported."""
        self._worker.close(finish=True)

    def _export(self, source: ModelSource) -> None:
        model = build_model(self._config, source.state, source.unseen)
        images = model.sample(SAMPLES, seed=0)
        save_grid(images, self._samples)
        self._drawn(source.round, images)
        model.save(self._model)
        log.info("samples of round %d: %s", source.round, self._samples)


def _failed(error: Exception) -> None:
    """A file that cannot be written is no reason to stop the rounds, but one to say so."""
    log.error("could not draw samples or export the model: %s", error, exc_info=error)
