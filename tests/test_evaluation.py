"""The server's own evaluations: lines, restarts, and what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import NAMES, clients, running, tiny_config

from common.config import RunConfig
from common.data import open_source
from common.errors import ConfigError, DataError
from server.evaluation import EvaluationOptions

CONFIG = tiny_config(rounds=3, output={"sample_every": 0, "evaluate_every": 2})


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accuracy score of less training than a real one."""
    monkeypatch.setattr("common.quality.accuracy.IMAGES", 100)
    monkeypatch.setattr("common.quality.lenet._IMAGES_SEEN", 200)


async def run(config: RunConfig, out: Path, evaluated: EvaluationOptions) -> None:
    async with (
        running(config, out, to_the_end=True, evaluated=evaluated) as address,
        clients(config, address, *NAMES) as all_,
    ):
        await asyncio.gather(*(client.take_part() for client in all_))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "evaluation.jsonl").read_text().splitlines()]


def test_a_run_is_evaluated_at_its_end_at_least(tmp_path: Path) -> None:
    options = EvaluationOptions("digits", None, "small")
    asyncio.run(run(CONFIG, tmp_path, options))
    last = lines(tmp_path)[-1]
    assert last["round"] == 3
    assert last["FD (small)"] > 0
    assert last["generated"] == last["real"] == 299
    evaluated = {line["round"] for line in lines(tmp_path)}
    assert evaluated <= {2, 3}
    pictures = {path.name for path in (tmp_path / "samples").iterdir()}
    assert pictures == {f"round-{number:06d}.png" for number in evaluated}
    assert all(("accuracy_score" in line) == (line["round"] == 3) for line in lines(tmp_path))
    labels = open_source("digits", train=False).labels
    assert labels is not None
    assert last["fewest_of_a_class"] == np.bincount(labels).min()

    async def again() -> None:
        async with running(CONFIG, tmp_path, to_the_end=True, evaluated=options):
            pass

    before = lines(tmp_path)
    with pytest.raises(AssertionError, match="before it was ready"):
        asyncio.run(again())
    assert lines(tmp_path) == before
    (tmp_path / "evaluation.jsonl").unlink()
    with pytest.raises(AssertionError, match="before it was ready"):
        asyncio.run(again())
    assert [line["round"] for line in lines(tmp_path)] == [3]


@pytest.mark.parametrize(
    ("every", "options", "error", "says"),
    [
        (2, EvaluationOptions(), ConfigError, "give --eval-data"),
        (0, EvaluationOptions("digits"), ConfigError, "never used"),
        (2, EvaluationOptions("digits", None, "vgg"), ConfigError, "choose lenet, small"),
        (2, EvaluationOptions("mnist"), DataError, "--data-dir"),
        (2, EvaluationOptions("imagenet"), DataError, "imagenet"),
    ],
)
def test_what_is_refused(
    every: int, options: EvaluationOptions, error: type[Exception], says: str, tmp_path: Path
) -> None:
    config = tiny_config(output={"sample_every": 0, "evaluate_every": every})
    with pytest.raises(error, match=says):
        asyncio.run(run(config, tmp_path / "run", options))
    assert not (tmp_path / "run").exists()


def test_lenet_needs_labels(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("L", (16, 16), index).save(tmp_path / "images" / f"{index}.png")
    options = EvaluationOptions(f"folder:{tmp_path}/images")
    with pytest.raises(ConfigError, match="needs labels"):
        options.open(CONFIG)


def test_images_of_other_classes_are_refused_before_the_run(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (16, 16)).save(tmp_path / name / "1.png")
    options = EvaluationOptions(f"folder:{tmp_path}", None, "small")
    with pytest.raises(DataError, match="named as classes: 0, 1, 2"):
        options.open(CONFIG)
    ignoring = tiny_config(data={"labels": "ignore"}, output={"evaluate_every": 2})
    assert options.open(ignoring) is not None


def test_a_run_without_evaluation_leaves_none(tmp_path: Path) -> None:
    asyncio.run(run(tiny_config(rounds=1), tmp_path, EvaluationOptions()))
    assert not (tmp_path / "evaluation.jsonl").exists()
