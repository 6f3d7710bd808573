"""Imports point one way (docs: the layout), and no module is too long to hold in mind."""

import ast
from pathlib import Path

import pytest

PACKAGES = ("common", "server", "client", "prism", "benchmarks")
ALLOWED = {
    "common": {"common"},
    "server": {"server", "common"},
    "client": {"client", "common"},
    "prism": {"prism", "server", "client", "common"},
    "benchmarks": set(PACKAGES),
}
GRPC = {
    "server/service.py",
    "server/interceptors.py",
    "server/app.py",
    "client/channel.py",
    "benchmarks/scale/load.py",
    "benchmarks/scale/sink.py",
}
MESSAGES = {
    *GRPC,
    "server/encoded.py",
    "server/status.py",
    "client/status.py",
    "client/transport.py",
    "common/wire.py",
}
"""What may use the contract's messages, besides the codec registry."""
MODULES = sorted(
    path
    for package in PACKAGES
    for path in Path(package).rglob("*.py")
    if not path.is_relative_to("common/rpc")
)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports(path: Path) -> None:
    names = imported(path)
    package = path.parts[0]
    ours = {name.split(".")[0] for name in names} & set(PACKAGES)
    assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"
    if any(name.split(".")[0] == "grpc" for name in names):
        assert str(path) in GRPC, f"{path} imports grpc"
    if any(name.startswith("common.rpc") for name in names):
        assert str(path) in MESSAGES or path.is_relative_to("common/codecs"), path


@pytest.mark.parametrize("path", [*MODULES, *Path("tests").glob("*.py")], ids=str)
def test_modules_are_short(path: Path) -> None:
    limit = 400 if path.is_relative_to("tests") else 350
    assert len(path.read_text().splitlines()) <= limit
