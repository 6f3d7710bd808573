"""`prism sample`: labelled images from a model file, in each form, read back by others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_config
from typer.testing import CliRunner

from common.compat import torchvision
from common.downlink import initial_state
from common.model.export import ExportedModel, build_model
from common.model.grid import model_grid
from prism.command_line import build
from prism.drawing import interpolation
from prism.outputs import folder_names

CONFIG = tiny_config(model={"width": 2, "latent": 8})
NAMES = ("T-shirt/top", "T-shirt_top", "cat", "Cat", "..", "a b", "c:d", "dog", "eel", "7")


def untrained(names: tuple[str, ...] = NAMES, unseen: tuple[int, ...] = ()) -> ExportedModel:
    return replace(build_model(CONFIG, initial_state(CONFIG), unseen), class_names=names)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    untrained().save(tmp_path / "model.prism")
    return tmp_path / "model.prism"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A model that draws no classes."""
    ignoring = tiny_config(data={"labels": "ignore"}, model={"channels": 3})
    build_model(ignoring, initial_state(ignoring)).save(tmp_path / "plain.prism")
    return tmp_path / "plain.prism"


def sample(model: Path, *words: str | Path) -> Any:
    return CliRunner().invoke(build(), ["sample", str(model), *map(str, words)])


def arrays(model: Path, *words: str) -> dict[str, np.ndarray]:
    out = model.parent / "out.npz"
    result = sample(model, *words, "--out", out)
    assert result.exit_code == 0, result.output
    with np.load(out, allow_pickle=False) as file:
        return dict(file)


def pixels(picture: Path) -> np.ndarray:
    with Image.open(picture) as image:
        return np.asarray(image)


def shape_of(lines: int, columns: int) -> tuple[int, int]:
    """Height and width of so many images of 16 x 16, two pixels apart, enlarged."""
    height, width = lines * 18 + 2, columns * 18 + 2
    scale = 1000 // max(height, width)
    return height * scale, width * scale


def test_arrays_have_images_and_their_labels(model: Path) -> None:
    found = arrays(model, "--per-class", "3", "--seed", "5")
    assert found["images"].shape == (30, 1, 16, 16) and found["images"].dtype == np.uint8
    assert found["labels"].dtype == np.int64
    assert np.bincount(found["labels"]).tolist() == [3] * 10
    assert tuple(found["class_names"]) == NAMES
    drawn = untrained().sample(30, 5, found["labels"]).numpy()
    assert np.array_equal(found["images"], drawn)
    again = arrays(model, "-n", "30", "--seed", "5")
    assert np.array_equal(found["images"], again["images"]), "3 each are 30 in turn"


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (("--class", "dog", "-n", "3"), [7, 7, 7]),
        (("--class", "7", "--class", "cat", "--class", "9", "-n", "5"), [9, 2, 9, 2, 9]),
        (("--class", "0", "--class", "Cat", "--per-class", "2"), [0, 3, 0, 3]),
        (("-n", "4"), [0, 1, 2, 3]),
        (("--class", "dog"), [7] * 10),
        (("--class", "1", "--class", "0", "--interpolate", "3"), [1, 1, 1, 0, 0, 0]),
    ],
)
def test_classes_by_name_and_number(model: Path, words: tuple[str, ...], labels: list) -> None:
    assert arrays(model, *words)["labels"].tolist() == labels


def test_without_classes_there_are_images_alone(plain: Path, tmp_path: Path) -> None:
    assert list(arrays(plain)) == ["images"]
    assert arrays(plain)["images"].shape == (64, 3, 16, 16)
    assert len(arrays(plain, "-n", "5")["images"]) == 5
    assert sample(plain, "--out", tmp_path / "p.png").exit_code == 0
    assert pixels(tmp_path / "p.png").shape == (*shape_of(8, 8), 3)
    assert sample(plain, "-n", "5", "--out", tmp_path / "folder").exit_code == 0
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["images"]
    assert len(torchvision.datasets.ImageFolder(str(tmp_path / "folder"))) == 5


def test_a_folder_is_read_back_class_by_class(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "not" / "there yet"
    result = sample(model, "--per-class", "3", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"30 images in {out}" in result.output
    folders = folder_names(NAMES)
    assert {path.name for path in out.iterdir()} == set(folders)
    assert (out / "T-shirt_top-2" / "00002.png").is_file()
    drawn = arrays(model, "--per-class", "3")
    found = torchvision.datasets.ImageFolder(str(out))
    assert len(found) == 30
    for (path, _), (image, number) in zip(found.samples, found, strict=True):
        label = folders.index(found.classes[number])
        of_class = drawn["images"][drawn["labels"] == label]
        assert np.array_equal(np.asarray(image)[..., 0], of_class[int(Path(path).stem)][0])


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("T-shirt/top", "T-shirt_top"), ("T-shirt_top-2", "T-shirt_top")),
        (("a/b", "a:b", "a_b-2"), ("a_b", "a_b-3", "a_b-2")),
        (("Cat", "cat"), ("Cat", "cat-2")),
        (("..", ".", "...x", "y."), ("_", "_-2", "x", "y")),
        (("é", "e\u0301", "猫"), ("é", "é-2", "猫")),
        (("\u202eabc", "C:\\x", "😀" * 64), ("_abc", "C__x", "😀" * 50)),
    ],
)
def test_class_names_as_folders(names: tuple[str, ...], folders: tuple[str, ...]) -> None:
    assert folder_names(names) == folders


def test_a_picture_has_a_row_for_each_class(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    assert sample(model, "--out", out).exit_code == 0
    model_grid(untrained()).save(tmp_path / "same.png")
    assert out.read_bytes() == (tmp_path / "same.png").read_bytes(), "what a run shows"
    height, width = shape_of(10, 10)
    assert pixels(out).shape[0] == height
    scale = height // (10 * 18 + 2)
    margin = pixels(out)[scale:-scale, :-width]
    rows = margin.reshape(10, scale * 18, -1)
    assert (rows.max(axis=(1, 2)) > 128).all(), "a name beside each row"


def test_a_long_row_takes_several_lines(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    assert (
        sample(model, "--class", "dog", "--class", "eel", "-n", "99", "--out", out).exit_code == 0
    )
    height, width = shape_of(6, 17)
    assert pixels(out).shape[0] == height
    scale = height // (6 * 18 + 2)
    last = pixels(out)[-scale * (2 + 18) : -2 * scale, -width:]
    assert last[:, : scale * 15 * 18].any(axis=0).sum() > scale * 15 * 16
    free = last[:, scale * (2 + 15 * 18) :]
    assert not free.any(), "49 eels leave two places of three lines free"


def test_between_two_noises_rows_have_the_same_steps(
    model: Path, plain: Path, tmp_path: Path
) -> None:
    found = arrays(model, "--class", "0", "--class", "1", "--interpolate", "5", "--seed", "2")
    noise = interpolation(8, 5, seed=2)
    drawn = untrained().sample(5, labels=np.ones(5, dtype=np.int64), noise=noise)
    assert np.array_equal(found["images"][5:], drawn.numpy())
    assert sample(plain, "--interpolate", "5", "--out", tmp_path / "p.png").exit_code == 0
    assert pixels(tmp_path / "p.png").shape == (*shape_of(1, 5), 3)


def test_steps_lie_on_an_arc() -> None:
    noise = interpolation(128, 9, seed=0)
    ends = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise[[0, -1]], ends)
    lengths = noise.norm(dim=1)
    assert lengths.min() >= lengths[[0, -1]].min(), "a straight line dips by 0.3"
    apart = torch.cosine_similarity(noise[1:], noise[:-1]).arccos()
    torch.testing.assert_close(apart, apart.mean().expand(8), atol=1e-3, rtol=0)
    for seed in range(4):
        assert interpolation(1, 3, seed).isfinite().all(), "of one direction, or opposite"


def test_a_class_that_nobody_held_is_drawn_with_a_warning(tmp_path: Path) -> None:
    untrained(unseen=(4, 7)).save(tmp_path / "model.prism")
    model, out = tmp_path / "model.prism", tmp_path / "out.npz"
    result = sample(model, "--out", out)
    assert "left out, because no client held enough images: .., dog" in result.stderr
    with np.load(out) as file:
        assert sorted(set(file["labels"])) == [0, 1, 2, 3, 5, 6, 8, 9]
    result = sample(model, "--class", "dog", "--class", "cat", "-n", "4", "--out", out)
    assert result.exit_code == 0
    assert "no client held enough images of dog: these are untrained" in result.stderr
    assert "left out" not in result.stderr
    with np.load(out) as file:
        assert file["labels"].tolist() == [7, 2, 7, 2]
    assert sample(model, "--class", "cat", "--out", out).stderr == ""


def test_mistakes_take_one_line_and_leave_nothing(model: Path, plain: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    new = tmp_path / "new" / "out.npz"
    mistakes: list[tuple[tuple[str | Path, ...], str]] = [
        ((model, "--class", "bird", "--out", new), "no class 'bird'; the model has T-shirt/top,"),
        ((model, "--class", "10", "--out", new), "no class '10'"),
        ((plain, "--class", "7", "--out", new), "draws no classes"),
        ((plain, "--per-class", "7", "--out", new), "needs a model that draws classes"),
        ((model, "-n", "7", "--per-class", "7", "--out", new), "give one of them"),
        ((model, "-n", "7", "--interpolate", "7", "--out", new), "give one of them"),
        ((model, "--out", tmp_path / "new.jpg"), "end it in .png or .npz, or name a folder"),
        ((model, "--out", full), "full is not empty"),
        ((model, "--out", model), "end it in .png or .npz"),
        ((model, "--out", full / "mine.txt" / "x"), "File exists"),
        ((full / "mine.txt", "--out", new), "not a model file"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for words, says in mistakes:
        result = sample(*words)
        assert result.exit_code == 1, words
        line = str(result.exception) if not result.output else result.output
        assert says in line and len(line.strip().splitlines()) == 1, (words, line)
        assert line.startswith("prism sample: ")
        assert sorted(tmp_path.rglob("*")) == before, words


def test_what_is_interrupted_leaves_no_part_of_a_class(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Image.Image.save

    def full(image: Image.Image, path: Path) -> None:
        if path.name == "00005.png":
            raise OSError(28, "No space left on device")
        saved(image, path)

    monkeypatch.setattr(Image.Image, "save", full)
    result = sample(model, "--out", tmp_path / "out")
    assert "No space left on device" in result.output
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    assert sample(model, "--out", tmp_path / "out").exit_code == 0, "an empty folder will do"
    assert len(list((tmp_path / "out").rglob("*.png"))) == 100
