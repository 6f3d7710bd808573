"""The peers' arithmetic and bytes, and the grid that holds everyone to the same work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmarks import reproduce
from benchmarks.measure import Measured, Meter, Setting, command
from benchmarks.peers import fedavg_gan, md_gan
from benchmarks.peers.networks import (
    AveragedGenerator,
    batches,
    discriminator,
    generator,
    generator_loss,
    noise_vectors,
    parameter_bytes,
    sample,
)
from benchmarks.report import Line, Measurement, bytes_until, table, write_report
from common.config import RunConfig, load_config, parse_config
from common.downlink import initial_state
from common.errors import ConfigError, PrismError
from common.model.export import build_model
from common.model.grid import Grid

CPU = torch.device("cpu")
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


def parts(count: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.rand(8, 1, 16, 16) * 2 - 1 for _ in range(count)]


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_networks_fit_each_other(size: int, data: str) -> None:
    config = parse_config("", ["model.width=2", f"model.image_size={size}", f"data.name={data}"])
    images = generator(config)(torch.randn(3, config.model.latent, 1, 1))
    assert images.shape == (3, config.channels, size, size)
    assert images.abs().max() <= 1
    assert discriminator(config)(images).shape == (3, 1)
    assert not [buffer for net in (generator, discriminator) for buffer in net(config).buffers()]
    assert sample(generator(config), config, 7, CPU).shape == (7, config.channels, size, size)


def test_the_generator_is_as_large_as_prisms() -> None:
    config = parse_config("", ["model.width=16", "data.name=mnist"])
    assert parameter_bytes(generator(config)) == 4 * 426_945


def test_averages_are_means() -> None:
    networks = [nn.Linear(3, 2) for _ in range(4)]
    mean = fedavg_gan.average(networks)
    stacked = torch.stack([network.weight for network in networks])
    torch.testing.assert_close(mean["weight"], stacked.mean(0))
    assert list(mean) == ["weight", "bias"]


@pytest.mark.parametrize("share", [0, 1])
def test_a_peer_is_judged_by_the_average_of_its_rounds(share: int) -> None:
    config = parse_config("", [*TINY, f"output.average={share}"])
    torch.manual_seed(2)
    before, first, last = (generator(config) for _ in range(3))
    averaged = AveragedGenerator(config, before)
    averaged.add(1, first)
    averaged.add(2, last)
    expected = generator(config)
    pairs = zip(expected.parameters(), first.parameters(), last.parameters(), strict=True)
    with torch.no_grad():
        for mean, early, late in pairs:
            mean.copy_((early + late) / 2 if share else late)
    difference = averaged.sample(5, CPU).int() - sample(expected, config, 5, CPU).int()
    assert difference.abs().max() <= 1


def test_fedavg_gan_moves_both_networks_both_ways() -> None:
    first, second = fedavg_gan.measure(SETTING)
    size = parameter_bytes(generator(CONFIG)) + parameter_bytes(discriminator(CONFIG))
    assert (first.line["up_bytes"], second.line["up_bytes"]) == (3 * size, 6 * size)
    assert second.line["down_bytes"] == 6 * size
    assert second.line["FD (small)"] > 0
    assert not torch.equal(first.images, second.images)
    assert torch.equal(first.grid.images, first.images[:64])
    again = list(fedavg_gan.measure(SETTING))[-1]
    assert torch.equal(again.images, second.images)


def test_md_gan_feedback_is_the_chain_rule() -> None:
    """With one client, the server's gradient is that of one network on top of the other."""
    torch.manual_seed(1)
    federation = md_gan.MdGan(CONFIG, parts(1), rate=0.0)
    kept = federation._noise.get_state()
    federation.iterate()
    noise = torch.Generator()
    noise.set_state(kept)
    z = noise_vectors(CONFIG, 4, noise)
    gradients = [p.grad for p in federation.generator.parameters()]
    images = federation.generator(z)
    loss = generator_loss(federation._judges[0], images)
    expected = torch.autograd.grad(loss, list(federation.generator.parameters()))
    for ours, whole in zip(gradients, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, whole, atol=1e-6, rtol=1e-4)


def test_md_gan_swaps_in_a_cycle_and_counts_it() -> None:
    torch.manual_seed(1)
    federation = md_gan.MdGan(CONFIG, parts(), rate=2e-4)
    # Eight images in batches of four: every second iteration ends a pass.
    batch, judge = 4 * 16 * 16 * 4, parameter_bytes(discriminator(CONFIG))
    assert federation.iterate() == (3 * batch, 3 * batch)
    before = [j[0].weight.clone() for j in federation._judges]
    federation._swap()
    after = [j[0].weight for j in federation._judges]
    moved = [[torch.equal(a, b) for b in before] for a in after]
    assert not any(moved[i][i] for i in range(3))
    assert all(sum(row) == 1 for row in moved)
    assert federation.iterate() == (3 * (batch + judge), 3 * (batch + judge))


def test_md_gan_sends_two_batches_where_there_are_two() -> None:
    federation = md_gan.MdGan(CONFIG, parts(8), rate=2e-4)
    batch = 4 * 16 * 16 * 4
    assert federation.iterate() == (8 * batch, 16 * batch)


def test_md_gan_runs() -> None:
    lines = [measured.line for measured in md_gan.measure(SETTING)]
    assert [line["rounds"] for line in lines] == [1, 2]
    assert lines[1]["up_bytes"] == 2 * lines[0]["up_bytes"] > 0


def test_batches_are_of_the_clients_own_images() -> None:
    images = torch.arange(6).float().view(6, 1, 1, 1)
    drawn = batches(images, 50, torch.Generator().manual_seed(0))
    assert set(next(drawn).flatten().tolist()) == set(range(6))


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
    images, line = setting.judged(judge, first)
    assert images.shape == (1500, 1, 16, 16)
    assert {"KID (small)", "FD (small) by client, mean", "FD (small) by client, worst"} <= {*line}
    assert all(isinstance(value, float | int) for value in line.values())
    assert "accuracy_score" not in line
    last = dataclasses.replace(first, round=config.rounds)
    assert "accuracy_score" in setting.judged(judge, last)[1]
    without = dataclasses.replace(setting, accuracy_score=False)
    assert "accuracy_score" not in without.judged(judge, last)[1]
    ignoring = parse_config("", [*TINY, "data.labels=ignore"])
    setting = Setting(ignoring, None, "small", samples=20)
    model = dataclasses.replace(build_model(ignoring, initial_state(ignoring)), round=2)
    line = setting.judged(setting.evaluator(), model)[1]
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
    for method, mada, alpha in (
        ("prism-published", True, 0),
        ("prism-dagger", False, 0),
        ("prism-alpha-published", True, 0.7),
    ):
        (cell,) = reproduce.grid("cpu", 1, ("mnist/iid", method))
        run = cell.config()
        assert (run.sharpening, run.alpha) == (published.sharpening, alpha)
        assert (run.codec, run.output) == (published.codec, published.output)
        assert run.mada == published.mada.model_copy(update={"enabled": mada})
        size = {"local_steps": run.train.local_steps}
        assert run.train == published.train.model_copy(update=size)


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


def test_a_table_shows_what_was_measured() -> None:
    facts = {"clients": 2, "total_rounds": 6}
    old = {"rounds": 6, "FD (lenet)": 9.0, "coverage": 0.5}
    old |= {"up_bytes": 12, "down_bytes": 12, "seconds": 6.0}
    more = {"KID (lenet)": 1.5, "KID (lenet), standard error": 0.1, "read_as_intended": 0.75}
    more |= {"accuracy_score": 0.5, "FD (lenet) by client, worst": 30.0}
    rows: dict[str, Line] = {"before": old, "now": old | more}
    methods = {name: [Measurement(facts, (line,))] for name, line in rows.items()}
    lines = [row.strip("| ").split(" | ") for row in table(methods).splitlines()]
    measures = ["KID (lenet)", "coverage", "read as intended", "accuracy score"]
    assert lines[0][4:9] == [*measures, "FD (lenet) by client, worst"]
    assert lines[2][4:9] == ["-", "0.5", "-", "-", "-"]
    assert lines[3][4:9] == ["1.5", "0.5", "0.75", "0.5", "30"]
    assert "KID" not in table({"before": methods["before"]})


def test_the_command_line_of_the_grid(tmp_path: Path) -> None:
    listed = invoke(reproduce.main, "--list", "--only", "cifar10/iid/fedavg")
    assert listed.output.strip() == "cpu/cifar10/iid/fedavg/1"
    assert invoke(reproduce.main, "--only", "nothing").exit_code == 1
    assert invoke(reproduce.main, "--size", "vast").exit_code == 1
    places = ["--out", str(tmp_path), "--docs", str(tmp_path / "docs")]
    assert invoke(reproduce.main, "--tables", *places).exit_code == 0
