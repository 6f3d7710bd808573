"""docs/architecture.md says what is: its files exist, its arrows are imports and RPCs."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.rpc.prism.v1 import federation_pb2 as pb

PAGES = [*sorted(Path("docs").glob("*.md")), Path("README.md")]
PAGE = Path("docs/architecture.md")
PATH = re.compile(
    r"(?:benchmarks|client|common|configs|docs|prism|proto|server|tests)/[\w./-]*\w/?"
)
NODE = re.compile(r"[│ ]*(?P<arrow>[├└]─> |══ (?P<rpc>\w+) ══> )?(?P<file>[\w/]+\.py)\b")
"""A line of the diagram with a file; whatever else stands there is for people."""
RPCS = {method.name for method in pb.DESCRIPTOR.services_by_name["Federation"].methods}


@dataclass(frozen=True)
class Arrow:
    """One call of the diagram; `rpc` is empty where it is a plain one."""

    tail: Path
    head: Path
    rpc: str


def diagram() -> list[str]:
    """The lines of the page's one fenced block that has arrows."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (drawn,) = (block for block in blocks if "─>" in block)
    return drawn.splitlines()


def arrows() -> list[Arrow]:
    """The calls of the diagram; an arrow stands below the first letter of the file it leaves."""
    drawn = []
    files: dict[int, Path] = {}
    for line in diagram():
        found = NODE.match(line)
        if found is None:
            assert "─>" not in line and "══" not in line, f"an arrow to nothing: {line}"
            continue
        file, column = Path(found["file"]), found.start("file")
        if found["arrow"]:
            column = found.start("arrow")
            assert column in files, f"an arrow from nothing: {line}"
            drawn.append(Arrow(files[column], file, found["rpc"] or ""))
        # What stands further right belongs to the branch that ends here.
        files = {at: above for at, above in files.items() if at <= column}
        files[found.start("file")] = file
    return drawn


def imports(file: Path) -> set[str]:
    """Dotted names of all that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("arrow", arrows(), ids=lambda a: f"{a.tail} {a.rpc}> {a.head}")
def test_an_arrow_is_an_import_or_an_rpc(arrow: Arrow) -> None:
    if arrow.rpc:
        assert arrow.rpc in RPCS
        assert f"_stub.{arrow.rpc}(" in arrow.tail.read_text()
        assert f"async def {arrow.rpc}(" in arrow.head.read_text()
    else:
        module = ".".join(arrow.head.with_suffix("").parts).removesuffix(".__init__")
        assert module in imports(arrow.tail)


def test_the_diagram_is_the_whole_way() -> None:
    drawn = {(str(arrow.tail), str(arrow.head)) for arrow in arrows()}
    rpcs = {arrow.rpc for arrow in arrows()} - {""}
    assert rpcs == {"SubmitUpdate", "FetchState"}
    assert ("server/engine.py", "server/rounds.py") in drawn
    assert len(drawn) > 20


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = {Path(name) for name in PATH.findall(page.read_text())}
    # NAME.py stands for a file that is to be added.
    wanted = {path.parent if path.name == "NAME.py" else path for path in named}
    assert [path for path in sorted(wanted) if not path.exists()] == []
