"""Runs on a folder of a person's own images, whose sub-folders are the classes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import jsonl
from typer.testing import CliRunner

from common.config import load_config
from common.errors import ConfigError, DataError
from common.model.export import load_model
from prism.command_line import build
from prism.own_images import fitted

QUICKSTART = Path("configs/quickstart.toml")
NAMES = ("cat", 'a "quoted" \\ name', "dog", "éclair 🍰")


def images_in(folder: Path, names: tuple[str, ...], count: int = 1) -> str:
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            colour = (40 * index % 256, 90, 200)
            Image.new("RGB", (20, 18), colour).save(folder / name / f"{index}.png")
    return f"folder:{folder}"


def fit(data: str | None, *overrides: str, config: Path = QUICKSTART) -> tuple[list[str], Any]:
    """What is told, and the config's section of data."""
    told: list[str] = []
    run = load_config(config, fitted(config, overrides, data, told.append))
    return told, run.data


def test_sub_folders_become_the_classes(tmp_path: Path) -> None:
    told, data = fit(images_in(tmp_path / "own", NAMES))
    assert (data.name, data.labels, data.classes) == ("folder", "use", tuple(sorted(NAMES)))
    assert told == [f"4 classes in {tmp_path}/own: {', '.join(sorted(NAMES))}"]
    told, data = fit(images_in(tmp_path / "many", tuple(f"{i:02}" for i in range(14))))
    assert told[0].endswith(": 00, 01, 02, 03, 04, 05, 06, 07, 08, 09, 10, 11, ...")
    assert len(data.classes) == 14


def test_what_the_person_said_goes_before(tmp_path: Path) -> None:
    own = images_in(tmp_path / "own", ("cat", "dog"))
    assert fit(None) == fit("digits") == ([], load_config(QUICKSTART).data)
    told, data = fit(own, "data.labels=ignore")
    assert (told, data.name, data.classes) == ([], "folder", ())
    told, data = fit(own, 'data.classes=["dog", "cat", "eel"]')
    assert (told, data.name, data.classes) == ([], "folder", ("dog", "cat", "eel"))
    told, data = fit(own, "data.name=mnist")
    assert (told, data.name) == ([], "mnist")
    listed = tmp_path / "listed.toml"
    listed.write_text('[data]\nname = "folder"\nclasses = ["dog", "cat"]\n')
    told, data = fit(own, config=listed)
    assert (told, data.classes) == ([], ("dog", "cat"))
    flat = images_in(tmp_path / "flat", ("",))
    told, data = fit(flat)
    assert (data.name, data.labels) == ("folder", "ignore")
    assert told == [f"no classes: not every image of {tmp_path}/flat is in a sub-folder"]


def test_mistakes_take_one_line(tmp_path: Path) -> None:
    long = images_in(tmp_path / "long", ("cat", "x\x1b"))
    with pytest.raises(ConfigError, match=r"sub-folder 'x.*up to 256 char.*data.labels=ignore"):
        fit(long)
    assert fit(long, "data.labels=ignore")[1].classes == ()
    bell = images_in(tmp_path / "bell", ("cat", "\a"))
    with pytest.raises(ConfigError, match=r"sub-folder '\\x07' cannot name a class"):
        fit(bell)
    with pytest.raises(DataError, match="none does not exist"):
        fit(f"folder:{tmp_path}/none")
    own = images_in(tmp_path / "own", ("cat", "dog"))
    with pytest.raises(ConfigError, match="data: "):
        fit(own, "data=3")


def test_more_sub_folders_than_classes_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prism.own_images.MOST_CLASSES", 2)
    own = images_in(tmp_path / "own", ("a", "b", "c"))
    with pytest.raises(ConfigError, match="3 sub-folders, but a run has at most 2 classes"):
        fit(own)


def test_a_partition_of_a_folder_is_shown_by_name(tmp_path: Path) -> None:
    own = images_in(tmp_path / "own", ("cat", "[b]dog"), count=6)
    words = ["partition", str(QUICKSTART), "--data", own, "--plot", str(tmp_path / "plot.png")]
    result = CliRunner().invoke(build(), words)
    assert result.exit_code == 0, result.output
    header, *rows = result.output.splitlines()[1:]
    assert header.split() == ["client", "[b]dog", "cat", "images"]
    assert [row.split()[-1] for row in rows] == ["4", "4", "4"]
    assert (tmp_path / "plot.png").stat().st_size > 0
    listed = [*words, "--set", 'data.classes=["[b]dog", "cat", "eel"]']
    result = CliRunner().invoke(build(), listed)
    assert result.output.splitlines()[0].split() == ["client", "[b]dog", "cat", "eel", "images"]


def test_a_run_on_a_folder_draws_its_classes(tmp_path: Path) -> None:
    own = images_in(tmp_path / "own", ("cat", "dog/black", "dog/brown"), count=4)
    words = ["run", str(QUICKSTART), "--data", own, "--out", str(tmp_path / "out")]
    for change in ("name=mine", "rounds=1", "data.clients=1", "model.width=1", "model.latent=4"):
        words += ["--set", change]
    words += ["--set", "data.min_class_size=2", "--set", "train.local_steps=1"]
    command = [sys.executable, "-m", "prism", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"2 classes in {tmp_path}/own: cat, dog\n" in done.stdout
    model = load_model(tmp_path / "out" / "model.prism")
    assert (model.class_names, model.architecture.channels) == (("cat", "dog"), 3)
    assert len(jsonl(tmp_path / "out" / "metrics.jsonl")) == 1
    result = CliRunner().invoke(
        build(),
        [
            "sample",
            str(tmp_path / "out/model.prism"),
            "--class",
            "dog",
            "--out",
            str(tmp_path / "d"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "d" / "dog").iterdir())) == 10
