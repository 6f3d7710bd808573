"""PRISM for Python programs.

    from prism import load_model

    images = load_model("runs/quickstart/model.prism").sample(16)

`load_model` reads what a run exported (see `common.model.export`); `__version__` is that of the
installed distribution. torch is imported when `load_model` is first looked up, not before.

Raises:
    ImportError: something else hides `common`, `client` or `server`, which this package needs;
        the message is one line that names the file or folder.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
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


def _check_nothing_is_hidden() -> None:
    """Raises ImportError if `common`, `client` or `server` is not the one beside this package."""
    for package in ("common", "client", "server"):
        spec = importlib.util.find_spec(package)
        if spec is None:
            continue
        # A folder without __init__.py has no origin, and hides an editable installation too.
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or [])))
        ours = Path(__file__).parent.with_name(package) / "__init__.py"
        if found.resolve() != ours.resolve():
            # With a name, `python -m prism` prints this line alone, without a traceback.
            raise ImportError(
                f"{found} hides the package {package!r} that prism needs: rename it, "
                "or start Python in another directory",
                name=__name__,
            )


_check_nothing_is_hidden()
