"""The version of the software, as installed; pyproject.toml is where it is set."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("prism-fl")
except PackageNotFoundError:
    __version__ = "not installed"
