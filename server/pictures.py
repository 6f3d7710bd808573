"""The pictures of a run: what its models draw.

`samples/round-000040.png` is of the model of round 40, and `samples.png` the latest of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from common.files import write_atomically
from common.model.export import ExportedModel
from common.model.grid import model_grid, png


class Pictures:
    """Draws each round that is exported or evaluated once, whichever thread comes first.

    Args:
        out: the run's directory.
        drawn: told in the thread of each drawing: the round, and its picture.
    """

    def __init__(self, out: Path, drawn: Callable[[int, Image.Image], None]) -> None:
        self._folder = out / "samples"
        self._latest = out / "samples.png"
        self._drawn = drawn
        self._rounds: set[int] = set()
        self._lock = threading.Lock()

    def save(self, model: ExportedModel) -> None:
        """Draw a model and keep the picture, unless that of its round was saved before.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            if model.round in self._rounds:
                return
            picture = model_grid(model).picture()
            content = png(picture)
            self._folder.mkdir(exist_ok=True)
            write_atomically(self._folder / f"round-{model.round:06d}.png", content)
            # An evaluation may come to its round when a later one is drawn already.
            if model.round >= max(self._rounds, default=0):
                write_atomically(self._latest, content)
            self._drawn(model.round, picture)
            self._rounds.add(model.round)
