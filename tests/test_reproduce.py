"""The grid that holds everyone to the same work: how runs are judged, measured and reported."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import reproduce
from benchmarks.measure import Masks, Measured, Meter, Setting, command
from benchmarks.report import Line, Measurement, bytes_until, table, write_report
from common.config import RunConfig, load_config, parse_config
from common.downlink import initial_state
from common.errors import ConfigError, PrismError
from common.model.export import build_model
from common.model.grid import Grid

TINY = (
    "rounds=2",
    "model.width=1",
    "model.latent=4",
    "model.image_size=16",
    "data.clients=3",
    "train.local_steps=2",
    "train.batch_size=4",
)
CONFIG = parse_config("", TINY)
SETTING = Setting(CONFIG, None, "small", every=1, samples=20, accuracy_score=False)


def test_the_meter() -> None:
    meter = Meter(clients=2, parameters=80)
    meter.add(40, 160, 1.0)
    meter.add(20, 320, 2.0)
    assert meter.line(2) == {
        "rounds": 2,
        "up_bytes": 60,
        "down_bytes": 480,
        "bits_up": 1.0,
        "bits_down": 16.0,
        "seconds": 3.0,
    }


def invoke(main: Any, *words: str) -> Any:
    import typer

    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, words)


def test_the_command_line_of_a_measurement(tmp_path: Path) -> None:
    def measure(setting: Setting) -> Iterator[Measured]:
        images = torch.zeros(4, 1, 8, 8).byte()
        yield Measured({"rounds": setting.config.rounds}, images, Grid.square(images))

    def fail(setting: Setting) -> Iterator[Measured]:
        raise PrismError("no")

    (tmp_path / "c.toml").write_text("rounds = 3")
    words = [str(tmp_path / "c.toml"), "--json", "--picture", str(tmp_path / "p.png")]
    result = invoke(command(measure, "x"), *words)
    assert json.loads(result.output) == {"rounds": 3}
    assert (tmp_path / "p.png").stat().st_size > 0
    assert invoke(command(fail, "x"), str(tmp_path / "c.toml")).exit_code == 1


def test_a_run_that_draws_classes_is_judged_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.quality.accuracy.IMAGES", 100)
    monkeypatch.setattr("common.quality.lenet._IMAGES_SEEN", 200)
    config = parse_config("", [*TINY, "data.partition=shards"])
    setting = Setting(config, None, "small", samples=1500)
    judge = setting.evaluator()
    first = build_model(config, initial_state(config))
    images, line = setting.judged(judge, first, 1)
    assert images.shape == (1500, 1, 16, 16)
    assert {"KID (small)", "FD (small) by client, mean", "FD (small) by client, worst"} <= {*line}
    assert all(isinstance(value, float | int) for value in line.values())
    assert "accuracy_score" not in line
    assert "accuracy_score" in setting.judged(judge, first, config.rounds)[1]
    without = dataclasses.replace(setting, accuracy_score=False)
    assert "accuracy_score" not in without.judged(judge, first, config.rounds)[1]
    ignoring = parse_config("", [*TINY, "data.labels=ignore"])
    setting = Setting(ignoring, None, "small", samples=20)
    model = build_model(ignoring, initial_state(ignoring))
    line = setting.judged(setting.evaluator(), model, ignoring.rounds)[1]
    assert not {"accuracy_score", "fewest_of_a_class"} & {*line}


def test_the_grid() -> None:
    cells = list(reproduce.grid("cpu", 3, ("mnist/shards",)))
    assert len(cells) == 3 * len(reproduce.METHODS)
    assert not [cell for cell in reproduce.grid("cpu", 1, ()) if cell.data == "fashion"]
    assert {c.method for c in reproduce.grid("cpu", 1, ("prism",))} == {"prism"}
    assert {c.data for c in reproduce.grid("cpu", 1, ("attribute",))} == {"celeba"}
    configs = [cell.config() for cell in reproduce.grid("paper", 2, ())]
    assert all(config.model.width == 64 for config in configs)
    seeds = [cell.config() for cell in reproduce.grid("paper", 2, ("mnist/iid/prism",))]
    assert len({config.run_id() for config in seeds}) == 2
    names = [cell.path(Path(), SETTING) for cell in reproduce.grid("paper", 2, ())]
    assert len(set(names)) == len(names)


def test_the_published_rows_are_the_published_recipe() -> None:
    published = load_config(Path("configs/published.toml"))
    for method, mada, alpha, labels in (
        ("prism-published", True, 0, "ignore"),
        ("prism-dagger", False, 0, "ignore"),
        ("prism-alpha-published", True, 0.7, "ignore"),
        ("prism-published-labels", True, 0, "use"),
    ):
        (cell,) = reproduce.grid("cpu", 1, ("mnist/iid", method))
        run = cell.config()
        assert (run.sharpening, run.alpha) == (published.sharpening, alpha)
        assert (run.codec, run.output) == (published.codec, published.output)
        assert run.mada == published.mada.model_copy(update={"enabled": mada})
        assert (run.data.labels, run.model.fan_in) == (labels, published.model.fan_in)
        size = {"local_steps": run.train.local_steps}
        assert run.train == published.train.model_copy(update=size)


def test_rows_are_of_classes_unless_they_say_otherwise() -> None:
    rows = {c.method: c.config() for c in reproduce.grid("cpu", 1, ("mnist/iid",))}
    unlabelled = {method for method, run in rows.items() if not run.classes}
    published = {"prism-published", "prism-dagger", "prism-alpha-published"}
    assert unlabelled == {"prism-unlabelled", *published}
    fresh = {method for method, row in reproduce.METHODS.items() if row.masks == "fresh"}
    assert fresh == {*published, "prism-published-labels"}


@pytest.mark.parametrize(
    ("method", "asked", "judged"),
    [
        ("prism", None, "exported"),
        ("prism", "fresh", "fresh"),
        ("prism-published", None, "fresh"),
        ("prism-published", "exported", "exported"),
        ("fedavg", "fresh", None),
        ("md-gan", "fresh", None),
    ],
)
def test_rows_say_which_masks_are_judged(
    method: str,
    asked: Masks | None,
    judged: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Setting] = []

    def measure(setting: Setting) -> Iterator[Measured]:
        seen.append(setting)
        images = torch.zeros(4, 1, 8, 8).byte()
        line = {"rounds": 2, "FD (small)": 1.0, "up_bytes": 1}
        yield Measured(line, images, Grid.square(images))

    row = dataclasses.replace(reproduce.METHODS[method], measure=measure)
    monkeypatch.setattr(reproduce, "METHODS", {method: row})
    (cell,) = tiny_cells(method)
    path = reproduce.run_cell(cell, dataclasses.replace(SETTING, masks=asked), tmp_path)
    assert [setting.masks for setting in seen] == [judged]
    assert ("-fresh-" in path.name) == (judged == "fresh")
    told = f"--masks {asked}" in path.read_text()
    assert told == (judged not in (None, row.masks))


def tiny_cells(*only: str) -> list[reproduce.Cell]:
    return list(reproduce.grid("cpu", 1, ("digits/shards", *only), TINY))


def test_cells_are_measured_once_and_reported(tmp_path: Path) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    paths = [
        reproduce.run_cell(cell, SETTING, out)
        for method in ("prism", "fedavg", "md-gan")
        for cell in tiny_cells(method)
    ]
    assert len(paths) == 3
    kept = {path: path.read_bytes() for path in paths}
    facts = json.loads(paths[0].read_text().splitlines()[0])
    assert "--only digits/shards/prism" in facts["command"]
    assert isinstance(parse_config(facts["config"]), RunConfig)
    for cell in tiny_cells("prism"):
        assert reproduce.run_cell(cell, SETTING, out) == paths[0]
    assert all(path.read_bytes() == content for path, content in kept.items())

    paths[1].write_bytes(kept[paths[1]][:-20])
    assert not reproduce.is_whole(paths[1])
    written = write_report(paths, docs, reproduce.is_whole)
    page = (docs / "cpu.md").read_text()
    assert [path.suffix for path in written] == [".png", ".md"]
    assert all(path.stat().st_size > 0 for path in written)
    other = out / "other.jsonl"
    other.write_bytes(kept[paths[0]])
    with pytest.raises(ConfigError, match=r"other\.jsonl has the row and the seed of another"):
        write_report([*paths, other], docs, reproduce.is_whole)
    second = kept[paths[0]].replace(b'"seed": 1', b'"seed": 2').replace(b"seed = 1", b"seed = 2")
    other.write_bytes(second)
    assert write_report([*paths, other], docs, reproduce.is_whole) == written
    other.write_bytes(second.replace(b"local_steps = 2", b"local_steps = 3"))
    with pytest.raises(ConfigError, match=r"other\.jsonl was run or judged in another way"):
        write_report([*paths, other], docs, reproduce.is_whole)
    assert "| prism |" in page
    assert "| md-gan |" in page
    assert "| fedavg |" not in page
    assert "seed 1" in page
    for cell in tiny_cells("fedavg"):
        reproduce.run_cell(cell, SETTING, out)
    assert reproduce.is_whole(paths[1])


def test_a_table_gives_the_last_distance_and_the_mean_of_the_last_third() -> None:
    facts = {"clients": 2, "total_rounds": 60}
    shared = dict.fromkeys(("precision", "recall", "density", "coverage"), 0.5)
    shared |= {"up_bytes": 120_000, "down_bytes": 240_000, "seconds": 120.0}
    measurements = [
        Measurement(
            facts,
            tuple(
                {"rounds": at, "FD (small)": value, **shared}
                for at, value in zip((20, 39, 40, 50, 60), distances, strict=True)
            ),
        )
        for distances in ((900, 900, 30, 60, 90), (900, 900, 40, 70, 10))
    ]
    row = table({"prism": measurements}).splitlines()[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["prism", "2", "50 ± 57", "50 ± 14"]
    assert cells[-4:] == ["1 kB", "2 kB", "never", "2"]


def test_a_table_shows_what_was_measured() -> None:
    facts = {"clients": 2, "total_rounds": 6}
    old = {"rounds": 6, "FD (lenet)": 9.0, "coverage": 0.5}
    old |= {"up_bytes": 12, "down_bytes": 12, "seconds": 6.0}
    more = {"KID (lenet)": 1.5, "KID (lenet), standard error": 0.1, "read_as_intended": 0.75}
    more |= {"accuracy_score": 0.5, "FD (lenet) by client, worst": 30.0}
    more |= {"FD (lenet) of 8 exported masks, mean": 11.0}
    rows: dict[str, Line] = {"before": old, "now": old | more}
    methods = {name: [Measurement(facts, (line,))] for name, line in rows.items()}
    lines = [row.strip("| ").split(" | ") for row in table(methods).splitlines()]
    measures = ["KID (lenet)", "coverage", "read as intended", "accuracy score"]
    of_more = ["FD (lenet) by client, worst", "FD (lenet) of 8 exported masks, mean"]
    assert lines[0][4:10] == [*measures, *of_more]
    assert lines[2][4:10] == ["-", "0.5", "-", "-", "-", "-"]
    assert lines[3][4:10] == ["1.5", "0.5", "0.75", "0.5", "30", "11"]
    assert "KID" not in table({"before": methods["before"]})


def test_the_command_line_of_the_grid(tmp_path: Path) -> None:
    listed = invoke(reproduce.main, "--list", "--only", "cifar10/iid/fedavg")
    assert listed.output.strip() == "cpu/cifar10/iid/fedavg/1"
    assert invoke(reproduce.main, "--only", "nothing").exit_code == 1
    assert invoke(reproduce.main, "--size", "vast").exit_code == 1
    places = ["--out", str(tmp_path), "--docs", str(tmp_path / "docs")]
    assert invoke(reproduce.main, "--tables", *places).exit_code == 0


def test_bytes_until_the_goal_is_reached_for_good() -> None:
    def measured(*distances: float) -> Measurement:
        return Measurement(
            {},
            tuple(
                {"FD (lenet)": distance, "up_bytes": at, "down_bytes": 9 * at}
                for at, distance in enumerate(distances, start=1)
            ),
        )

    assert bytes_until(measured(9, 4, 6, 5, 3), "FD (lenet)", 5) == 40
    assert bytes_until(measured(5), "FD (lenet)", 5) == 10
    assert bytes_until(measured(3, 3, 6), "FD (lenet)", 5) is None
