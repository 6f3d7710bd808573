import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from common.compat import _declared, import_torchvision, torchvision

PROGRAM = """
    import sys, torch
    {setup}
    try:
        import torchvision
        plain = "works"
    except RuntimeError as error:
        plain = "nms" if "torchvision::nms does not exist" in str(error) else repr(error)
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        if plain != "works":
            del sys.modules[name]
    from common import compat
    print(plain, len(compat._declared), compat.torchvision.__name__)
    """


def run(setup: str = "") -> list[str]:
    program = textwrap.dedent(PROGRAM).format(setup=setup)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


def test_schemas_are_declared_when_and_only_when_they_are_missing() -> None:
    plain, declared, name = run()
    assert plain in ("works", "nms")
    assert declared == ("0" if plain == "works" else "1")
    assert name == "torchvision"


def test_nothing_is_declared_where_the_operators_exist() -> None:
    setup = (
        "lib = torch.library.Library('torchvision', 'DEF'); "
        "[lib.define(f'{n}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor') "
        "for n in ('nms', 'qnms')]"
    )
    if not _declared:
        pytest.skip("torchvision brings its own operators here")
    assert run(setup) == ["works", "0", "torchvision"]


def test_another_error_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('of another kind')")
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RuntimeError, match="of another kind"):
        import_torchvision()


def test_what_is_used_of_it_is_there() -> None:
    assert import_torchvision() is torchvision
    assert torchvision.datasets.MNIST
    assert torchvision.models.vgg19_bn
