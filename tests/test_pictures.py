"""Pictures of models: rows of classes, and what a run keeps of its rounds."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import NAMES, clients, running, tiny_config, whole_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.downlink import initial_state
from common.model.export import ExportedModel, build_model
from common.model.grid import Grid, image_grid, model_grid
from server.pictures import Pictures

CONFIG = tiny_config(model={"width": 2, "latent": 8})
BLANK = torch.full((7, 1, 4, 4), 9, dtype=torch.uint8)


def untrained(unseen: Collection[int] = (), round_: int = 0) -> ExportedModel:
    model = build_model(CONFIG, initial_state(CONFIG))
    return replace(model, unseen=tuple(unseen), round=round_)


def test_a_grid_of_classes() -> None:
    labels = np.array([1, 0, 1, 1, 0, 1, 1])
    images = BLANK * torch.from_numpy(labels + 1).view(7, 1, 1, 1).byte()
    grid = Grid.by_class(images, labels, ("none", "one"))
    assert (grid.columns, grid.names) == (5, ("one", "none")), "as the labels name them"
    values = grid.images[:, 0, 0, 0].tolist()
    assert values == [18] * 5 + [9, 9, 0, 0, 0]
    assert image_grid(grid.images, grid.columns).shape == (1, 14, 32)
    narrow, plain = grid.picture(), replace(grid, names=()).picture()
    assert narrow.height == plain.height and narrow.width > plain.width
    assert (narrow.mode, plain.mode) == ("RGB", "L")


def test_a_grid_without_classes() -> None:
    grid = Grid.square(BLANK.expand(7, 3, 4, 4))
    assert (grid.columns, grid.names, grid.picture().mode) == (3, (), "RGB")
    assert image_grid(grid.images, 3).shape == (3, 20, 20)


@pytest.mark.parametrize(
    ("rows", "longest", "lines", "columns"),
    [(10, 10, 1, 10), (1, 20, 1, 20), (2, 50, 3, 17), (10, 100, 4, 25), (1, 1, 1, 1)],
)
def test_long_rows_take_several_lines(rows: int, longest: int, lines: int, columns: int) -> None:
    row = BLANK[:1].repeat(longest, 1, 1, 1)
    grid = Grid.rows([row, *[BLANK[:1]] * (rows - 1)])
    assert grid.columns == columns
    assert len(grid.images) == rows * lines * columns


def test_the_picture_of_a_model_has_a_row_for_each_class_that_was_taught() -> None:
    whole = model_grid(untrained())
    assert (whole.names, whole.columns) == (tuple("0123456789"), 10)
    assert torch.equal(whole.images[70:80], whole_row(7))
    few = model_grid(untrained(unseen=(0, 1, 2, 3)))
    assert few.names == tuple("456789")
    assert torch.equal(few.images, whole.images[40:]), "each place keeps its noise"
    ignoring = tiny_config(data={"labels": "ignore"})
    plain = model_grid(build_model(ignoring, initial_state(ignoring)))
    assert (plain.names, plain.columns, len(plain.images)) == ((), 8, 64)


def whole_row(label: int) -> torch.Tensor:
    labels = np.tile(np.arange(10), 10)
    return untrained().sample(100, 0, labels)[torch.from_numpy(labels == label)]


def test_an_evaluation_that_comes_late_does_not_bring_the_past_back(tmp_path: Path) -> None:
    drawn: list[int] = []
    pictures = Pictures(tmp_path, lambda round_, _: drawn.append(round_))
    for model in (untrained((0, 1), 3), untrained((0,), 5), untrained((), 4), untrained((), 5)):
        pictures.save(model)
    assert drawn == [3, 5, 4]
    kept = {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()}
    assert sorted(kept) == ["round-000003.png", "round-000004.png", "round-000005.png"]
    assert len(set(kept.values())) == 3
    assert (tmp_path / "samples.png").read_bytes() == kept["round-000005.png"]


def test_pictures_of_rounds_outlast_a_restart(tmp_path: Path) -> None:
    config = tiny_config(rounds=3, output={"sample_every": 1})

    async def one_round() -> None:
        async with running(config, tmp_path) as address, clients(config, address, *NAMES) as all_:
            for client in all_:
                await client.join()
            for client in all_:
                await client.submit(await client.assignment())
            assert (await all_[0].assignment()).round == 1

    asyncio.run(one_round())
    first = tmp_path / "samples" / "round-000001.png"
    before = first.read_bytes(), first.stat().st_mtime_ns
    assert (tmp_path / "samples.png").read_bytes() == before[0]
    asyncio.run(whole_run(config, tmp_path))
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    last = tmp_path / "samples" / "round-000003.png"
    assert (tmp_path / "samples.png").read_bytes() == last.read_bytes() != before[0]
    kept = sorted(int(path.stem[-6:]) for path in (tmp_path / "samples").iterdir())
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = events.Images("samples")
    assert sorted(image.step for image in shown) == kept
    with Image.open(last) as picture:
        assert (shown[-1].width, shown[-1].height) == picture.size
