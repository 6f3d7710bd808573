"""torchvision, importable beside a torch build that its compiled operators do not fit.

Import it from here and nowhere else: `from common.compat import torchvision`. A CPU build of
torch may meet a torchvision whose CUDA operators cannot load; torchvision then fails on
import because it describes operators that were never declared. Nothing here calls them, so
their schemas are declared instead.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Final

import torch

__all__ = ["import_torchvision", "torchvision"]

_SYMPTOM: Final = "operator torchvision::nms does not exist"
_SCHEMAS: Final = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A library's declarations last as long as the object does.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision; declare the operators it misses only if that is what fails.

    Returns:
        The torchvision package, with `datasets`, `models` and `transforms`.

    Raises:
        Exception: whatever else is wrong with the installation, unchanged.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _SYMPTOM not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    return importlib.import_module("torchvision")


torchvision = import_torchvision()
