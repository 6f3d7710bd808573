"""What is installed, by a plain and by an editable installation, wherever it is started from."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGES = {"client", "common", "prism", "server"}
TINY = """
name = "tiny"
rounds = 1
[data]
name = "digits"
clients = 1
[model]
width = 1
latent = 1
image_size = 16
[encoder]
layers = [3]
pool = 1
[train]
local_steps = 1
batch_size = 2
class_batch = 2
[output]
sample_every = 0
"""


class Installation(NamedTuple):
    """An environment of its own, made without the network."""

    kind: str
    source: Path
    python: Path
    prism: Path

    def run(self, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        hidden = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run(
            [*map(str, words)], cwd=cwd, env=hidden, capture_output=True, text=True, timeout=120
        )


@pytest.fixture(scope="module", params=["plain", "editable"])
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Installation:
    folder = tmp_path_factory.mktemp(request.param)
    source, venv = folder / "source", folder / "venv"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(name, source)
    for name in (*PACKAGES, "benchmarks"):
        shutil.copytree(name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    # What the project depends on is borrowed from the environment that runs the tests.
    specs = [find_spec(name) for name in ("setuptools", "torch", "typer")]
    borrowed = {str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin}
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)))
    python = venv / "bin" / "python"
    words = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
    words += ["--editable", str(source)] if request.param == "editable" else [str(source)]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", *words], check=True, timeout=120)
    return Installation(request.param, source, python, venv / "bin" / "prism")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A person's own directory, with names in it that are ours too."""
    for name in ("server.py", "prism.py", "client/__main__.py", "common/__init__.py"):
        path = tmp_path / "elsewhere" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit(f'{__file__} ran')\n")
    return tmp_path / "elsewhere"


def test_a_run_is_not_disturbed_by_the_current_directory(
    installed: Installation, elsewhere: Path
) -> None:
    (elsewhere / "tiny.toml").write_text(TINY)
    done = installed.run(installed.prism, "run", "tiny.toml", "--relay", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "runs" / "tiny" / "model.prism").exists()


@pytest.mark.parametrize("name", ["server.py", "common/__init__.py", "client/notes.txt"])
def test_what_hides_ours_is_named_in_one_line(
    installed: Installation, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    # A folder without __init__.py comes after a plain installation, but before an editable one.
    hides = path.suffix == ".py" or installed.kind == "editable"
    named = path if path.suffix == ".py" else path.parent
    done = installed.run(installed.python, "-m", "prism", "--version", cwd=tmp_path)
    assert done.returncode == (1 if hides else 0)
    assert len(done.stderr.splitlines()) == (1 if hides else 0), done.stderr
    assert (f"ImportError: {named} hides the package" in done.stderr) == hides

    program = "import prism\nprint(prism.__version__)"
    done = installed.run(installed.python, "-c", program, cwd=tmp_path)
    assert done.returncode == (1 if hides else 0)
    assert (f"ImportError: {named} hides" in (done.stderr.splitlines() or [""])[-1]) == hides


def test_what_was_imported_before_is_named_too(installed: Installation, tmp_path: Path) -> None:
    (tmp_path / "common.py").write_text("")
    program = "import sys; sys.path.insert(0, ''); import common; del sys.path[0]; import prism"
    done = installed.run(installed.python, "-P", "-c", program, cwd=tmp_path)
    assert f"ImportError: {tmp_path / 'common.py'} hides" in done.stderr.splitlines()[-1]


def test_the_python_api(installed: Installation, tmp_path: Path) -> None:
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    program = (
        "import sys, prism\n"
        f"assert prism.__version__ == {version!r}, prism.__version__\n"
        "assert set(prism.__all__) <= set(dir(prism))\n"
        "assert not hasattr(prism, 'nothing')\n"
        "assert 'torch' not in sys.modules\n"
        "assert prism.load_model.__module__ == 'common.model.export'\n"
    )
    done = installed.run(installed.python, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = installed.run(installed.prism, "--version", cwd=tmp_path)
    assert done.stdout == f"prism {version}\n"


def test_benchmarks_run_from_the_clone_alone(installed: Installation, tmp_path: Path) -> None:
    words = (installed.python, "-c", "import benchmarks.peers, common.layout, prism")
    assert "No module named 'benchmarks'" in installed.run(*words, cwd=tmp_path).stderr
    here = installed.run(*words, cwd=installed.source)
    assert here.returncode == 0, here.stderr


def test_the_wheel_holds_the_product_alone(installed: Installation) -> None:
    if installed.kind != "plain":
        pytest.skip("an editable installation points at the source")
    (site,) = installed.python.parents[1].glob("lib/python*/site-packages")
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == PACKAGES | {"borrowed.pth"}
