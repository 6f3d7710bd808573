"""PRISM for Python programs.

    from prism import load_model

    images = load_model("runs/quickstart/model.prism").sample(16)

`load_model` reads what a run exported (see `common.model.export`); `__version__` is that of the
installed distribution. torch is imported when `load_model` is first looked up, not before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from common.model.export import load_model
    from common.version import __version__

__all__ = ["__version__", "load_model"]

_HOMES: Final = {"load_model": "common.model.export", "__version__": "common.version"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
