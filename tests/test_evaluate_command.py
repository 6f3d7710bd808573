"""`prism evaluate`, from a model file to figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import tiny_config
from typer.testing import CliRunner

from common.config import RunConfig
from common.downlink import initial_state
from common.model.export import ExportedModel, build_model
from prism.command_line import build

CONFIG = tiny_config(
    model={"width": 1, "latent": 4},
    data={"partition": "shards", "clients": 2, "shards_per_client": 2},
)


def untrained(config: RunConfig = CONFIG) -> ExportedModel:
    return build_model(config, initial_state(config))


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifiers of less training than real ones."""
    monkeypatch.setattr("common.quality.accuracy.IMAGES", 100)
    monkeypatch.setattr("common.quality.lenet._IMAGES_SEEN", 200)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    untrained().save(tmp_path / "model.prism")
    return tmp_path / "model.prism"


def evaluate(model: Path, *words: str) -> Any:
    line = ["evaluate", str(model), "--cache", str(model.parent / "cache"), *words]
    return CliRunner().invoke(build(), line)


def figures(model: Path, *words: str) -> dict[str, Any]:
    result = evaluate(model, "--json", *words)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_model_that_draws_classes(model: Path) -> None:
    found = figures(model, "--data", "digits", "--samples", "1498")
    assert 0 <= found["accuracy_score"] <= 1
    assert len(found["read_as_intended_by_class"]) == len(found["FD (lenet) by class"]) == 10
    assert found["FD (lenet) by class, worst"] >= found["FD (lenet) by class, mean"] > 0
    assert found["KID (lenet)"] > 0
    assert found["fewest_of_a_class"] > 84


def test_clients_and_what_is_left_out(model: Path) -> None:
    config = model.parent / "config.toml"
    config.write_text(CONFIG.to_toml())
    words = ("--data", "digits", "--features", "small", "--no-accuracy-score")
    found = figures(model, *words, "--samples", "1498", "--partition", str(config))
    assert len(found["FD (small) by client"]) == 2
    assert "accuracy_score" not in found
    assert "read_as_intended" not in found
    few = evaluate(model, *words, "--samples", "400", "--partition", str(config))
    shown = " ".join(few.stdout.split())
    assert "FD (small) by client needs 353 images of each on both sides" in shown
    assert "FD (small) by class needs 353 images of each" in shown


def test_a_model_without_classes(model: Path) -> None:
    untrained(tiny_config(model={"width": 1, "latent": 4}, data={"labels": "ignore"})).save(model)
    found = figures(model, "--data", "digits", "--samples", "100", "--features", "small")
    assert not {"accuracy_score", "read_as_intended", "fewest_of_a_class"} & found.keys()
    assert "KID (small)" in found
    refused = evaluate(model, "--data", "digits", "--accuracy-score")
    assert refused.exit_code == 1
    assert "needs a model that draws classes" in refused.output


def images_in(folder: Path, names: tuple[str, ...]) -> str:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            grey = Image.new("L", (16, 16), 20 * index + number)
            grey.save(folder / name / f"{index}.png")
    return f"folder:{folder}"


def test_a_folder_of_other_classes_or_none(model: Path, tmp_path: Path) -> None:
    named = dataclasses.replace(untrained(), class_names=tuple("jihgfedcba"))
    named.save(model)
    words = ("--features", "small", "--samples", "100")
    result = evaluate(model, "--data", images_in(tmp_path / "all", tuple("abcdefghij")), *words)
    assert result.exit_code == 0, result.output
    assert "has no test part" in result.output
    assert "accuracy score" in result.stdout
    result = evaluate(model, "--data", images_in(tmp_path / "flat", ("",)), *words)
    assert result.exit_code == 0, result.output
    assert "has no labels: classes are not judged" in " ".join(result.output.split())
    result = evaluate(model, "--data", images_in(tmp_path / "other", ("a", "z")), *words)
    assert result.exit_code == 1
    assert "z" in result.output


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        (CONFIG, ("--test",), "leave out --test"),
        (tiny_config(data={"labels": "ignore"}), (), "and the config of its run"),
        (tiny_config(data={"name": "mnist"}), (), "cuts mnist, which is not --data digits"),
    ],
)
def test_a_partition_that_does_not_fit(
    model: Path, config: RunConfig, words: tuple[str, ...], message: str
) -> None:
    path = model.parent / "config.toml"
    path.write_text(config.to_toml())
    result = evaluate(model, "--data", "digits", "--partition", str(path), *words)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
