"""What the released code does otherwise than the defaults: a config value, or a way to judge."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import simulate
from benchmarks.masks import MASKS, FreshMasks, over_masks
from benchmarks.measure import Setting
from benchmarks.step_speed import compare, step_config
from client.loss import Moments, MovingAverages, real_moments
from client.trainer import PrismTrainer
from common.config import RunConfig, parse_config
from common.data import load_images, open_source
from common.downlink import initial_state
from common.encoders import load_encoder, load_small
from common.errors import ConfigError
from common.model.architecture import Architecture
from common.model.export import build_model, load_model
from common.model.frozen import frozen_weights, weights_digest
from common.server_update import RoundCounts, advance, estimate, masked_count
from common.state import LAMBDA_ONE, GlobalState, move_in_score_space, sigma
from server.average import ModelSource

CPU = torch.device("cpu")
SHAPES = ("model.width=2", "model.image_size=16", "model.latent=8")
TINY = (*SHAPES, "rounds=2", "train.local_steps=2", "train.batch_size=8")
UNLABELLED = parse_config("", [*TINY, "data.labels=ignore"])


def digits_trainer(*changes: str) -> PrismTrainer:
    config = parse_config("", [*TINY, "data.labels=ignore", *changes])
    encoder = load_encoder("small")
    images = load_images(open_source("digits"), np.arange(40), 16, 1)
    return PrismTrainer(config, encoder, real_moments(encoder, [images], CPU), CPU)


@pytest.mark.parametrize(("scores", "by"), [("damped", 0.25), ("replaced", 1.0)])
def test_averaged_scores_move_by_lambda_or_at_once(scores: str, by: float) -> None:
    config = parse_config(
        "", [*SHAPES, "alpha=0.5", "mada.enabled=true", f"mada.scores={scores}", "sharpening=1"]
    )
    state = initial_state(config)
    border = masked_count(config)
    assert 0 < border < state.dimension
    told = np.full(state.dimension - border, 999, dtype=np.int16)
    counts = RoundCounts(2, False, np.ones(border, dtype=np.int32), told)
    target = estimate(config, state, counts)
    after = advance(config, state, counts, target, LAMBDA_ONE // 4).scores
    before = state.scores.astype(np.int64)
    assert np.abs(after[border:] - (before[border:] + by * (told - before[border:]))).max() <= 0.5
    masked = move_in_score_space(state.scores[:border], target[:border], LAMBDA_ONE // 4)
    assert np.array_equal(after[:border], masked)


@pytest.mark.parametrize("labels", ["use", "ignore"])
def test_weights_are_as_large_as_torch_would_make_them(labels: str) -> None:
    """Against torch's own count for kernels of these shapes; labels weigh as much beside z."""
    ours, torchs = (
        Architecture.of(parse_config("", [*SHAPES, f"data.labels={labels}", f"model.fan_in={by}"]))
        for by in ("inputs", "torch")
    )
    assert ours.dimension == torchs.dimension
    for layer, plain in zip(torchs.layers, ours.layers, strict=True):
        if layer.kind != "label":
            inputs, _ = nn.init._calculate_fan_in_and_fan_out(torch.empty(layer.shape))  # type: ignore[no-untyped-call]
            assert layer.magnitude == pytest.approx(math.sqrt(2 / inputs))
        assert (layer.magnitude == plain.magnitude) == (layer.kind == "conv")
    if labels == "use":
        sizes = [[layer.magnitude for layer in of.layers[:2]] for of in (ours, torchs)]
        assert sizes[0][1] / sizes[0][0] == pytest.approx(sizes[1][1] / sizes[1][0])
    assert weights_digest(ours, 1) != weights_digest(torchs, 1)


def test_a_model_keeps_how_large_its_weights_are(tmp_path: Path) -> None:
    torchs = parse_config("", [*SHAPES, "model.fan_in=torch"])
    built = build_model(torchs, initial_state(torchs))
    built.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.architecture == built.architecture
    assert torch.equal(loaded.sample(3), built.sample(3))
    plain = dataclasses.replace(loaded.architecture, fan_in="inputs")
    assert not torch.equal(
        dataclasses.replace(loaded, architecture=plain).sample(3), built.sample(3)
    )


def test_moving_averages_start_uniform_and_of_each_clients_own() -> None:
    state = initial_state(UNLABELLED)
    kept = ("train.moving_average_rate=1e-12", "train.moving_average_leak=0")
    started = {}
    for client in ("a", "b"):
        trainer = digits_trainer("train.moving_average_start=uniform", *kept)
        trainer.train(state, client)
        started[client] = torch.stack([*trainer._averages.mean, *trainer._averages.variance])
        trainer.train(state, client)
        again = torch.stack([*trainer._averages.mean, *trainer._averages.variance])
        torch.testing.assert_close(again, started[client], atol=1e-8, rtol=0)
    a, b = started["a"].detach(), started["b"].detach()
    bound = 1 / math.sqrt(a.shape[1])
    assert 0.99 * bound < a.abs().max() <= bound
    assert a.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert torch.corrcoef(torch.stack([a[0], a[1], b[0]])).triu(1).abs().max() < 0.1
    still = digits_trainer(*kept)
    still.train(state, "a")
    assert torch.stack(still._averages.mean).abs().max() < 1e-10


def test_scattered_averages_survive_a_restart() -> None:
    state = initial_state(UNLABELLED)
    steady = digits_trainer("train.moving_average_start=uniform")
    steady.train(state, "a")
    kept = copy.deepcopy(steady.state_dict())
    restarted = digits_trainer("train.moving_average_start=uniform")
    restarted.load_state_dict(kept)
    last = dataclasses.replace(state, round=1)
    assert np.array_equal(restarted.train(last, "a").values, steady.train(last, "a").values)


def test_a_mean_of_squared_errors_lets_adams_epsilon_count() -> None:
    """One step written out: where the gradient is the epsilon, the step is half the rate."""
    difference = torch.tensor([[0.5, 2e-8, 0.0, 0.0]])
    real, generated = Moments(difference, difference), Moments(torch.zeros(1, 4), torch.zeros(1, 4))
    moved = {}
    for loss in ("sum", "mean"):
        averages = MovingAverages(1, 4, 1e-2, CPU, loss=loss)  # type: ignore[arg-type]
        averages.step(real, generated, [0])
        moved[loss] = averages.mean[0].tolist()
    assert moved["mean"] == pytest.approx([1e-2, 0.5e-2, 0, 0], rel=1e-4)
    assert moved["sum"] == pytest.approx([1e-2, 0.8e-2, 0, 0], rel=1e-4)


def test_losses_of_a_mean_are_the_references() -> None:
    config = step_config(4, 8, steps=2, image_size=16)
    train = config.train.model_copy(update={"moving_average_loss": "mean"})
    config = config.model_copy(update={"train": train})
    compared = compare(config, load_small(), repeats=1)
    assert compared.loss_error < 1e-5
    assert compared.published[1] == pytest.approx(compared.ours[1], rel=1e-3)


def state_of(config: RunConfig, theta: float) -> ModelSource:
    scores = np.full(Architecture.of(config).dimension, 2048 * math.log(theta / (1 - theta)))
    return ModelSource(GlobalState(1, scores.astype(np.int16)))


def test_fresh_masks_are_sampled_from_theta_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    source = state_of(UNLABELLED, 0.25)
    seen: list[tuple[torch.Tensor, int]] = []

    def record(
        _: Architecture, z: torch.Tensor, weights: torch.Tensor, **__: object
    ) -> torch.Tensor:
        seen.append((weights, len(z)))
        return torch.zeros(len(z), 1, 16, 16)

    monkeypatch.setattr("benchmarks.masks.generate", record)
    assert FreshMasks(UNLABELLED, source, CPU).sample(20).shape == (20, 1, 16, 16)
    assert [size for _, size in seen] == [8, 8, 8]
    frozen = torch.from_numpy(frozen_weights(Architecture.of(UNLABELLED), UNLABELLED.seed))
    masks = [weights / frozen for weights, _ in seen]
    assert {value for mask in masks for value in mask.unique().tolist()} == {0, 1}
    theta = sigma(source.state.scores)[0] / 65536
    for mask in masks:
        assert mask.mean().item() == pytest.approx(theta, abs=0.02)
    assert (masks[0] != masks[1]).float().mean().item() == pytest.approx(2 * 0.25 * 0.75, abs=0.02)


def test_fresh_masks_draw_what_they_are_asked_for() -> None:
    config = parse_config("", TINY)
    source = ModelSource(initial_state(config), unseen=(2,))
    fresh = FreshMasks(config, source, CPU)
    assert fresh.learned == (0, 1, 3, 4, 5, 6, 7, 8, 9)
    labels = np.array(fresh.learned)[np.arange(12) % 9]
    assert torch.equal(fresh.sample(12), fresh.sample(12, labels=labels))
    assert not torch.equal(fresh.sample(12), fresh.sample(12, seed=1))
    assert not torch.equal(fresh.sample(12), fresh.sample(12, labels=np.zeros(12, np.int64)))
    weights = parse_config("", [*TINY, "method=fedavg"])
    with pytest.raises(ConfigError, match='"fedavg" has no masks'):
        next(simulate.measure(Setting(weights, None, "small", masks="fresh")))


def test_certain_masks_leave_nothing_to_chance_but_the_noise() -> None:
    """Where theta is 0 or 1, fresh masks are the exported one, and only statistics differ."""
    config = parse_config("", [*TINY, "data.labels=ignore", "train.batch_size=512"])
    signs = np.where(initial_state(config).scores > 0, 32767, -32768).astype(np.int16)
    source = ModelSource(GlobalState(1, signs))
    fresh = FreshMasks(config, source, CPU).sample(64).float()
    stored = build_model(config, source.state).sample(64)
    noise = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))[:64]
    model = build_model(config, source.state)
    assert (fresh - model.sample(64, noise=noise).float()).abs().mean() < 4
    assert (fresh - stored.float()).abs().mean() > 0


def test_the_first_of_the_exported_masks_is_the_models() -> None:
    config = parse_config("", [*TINY, "output.mask=sample"])
    state = initial_state(config)
    drawn = [build_model(config, state, draw=draw).sample(1) for draw in range(3)]
    assert torch.equal(drawn[0], build_model(config, state).sample(1))
    assert len({images.numpy().tobytes() for images in drawn}) == 3


def test_the_spread_is_over_masks_that_could_be_exported() -> None:
    config = parse_config("", [*TINY, "output.mask=sample"])
    judge = Setting(config, None, "small").evaluator()
    source = ModelSource(initial_state(config), unseen=(2,))
    models = [build_model(config, source.state, (2,), draw=draw) for draw in range(MASKS)]
    images = [judge.draw(model, 20)[0] for model in models]
    distances = [judge.evaluate(of_model).distance for of_model in images]
    assert over_masks(judge, config, source, 20) == {
        "FD (small) of 8 exported masks, mean": mean(distances),
        "FD (small) of 8 exported masks, spread": stdev(distances),
    }


@pytest.mark.parametrize("mask", ["sample", "threshold"])
def test_lines_differ_by_the_masks_that_are_judged(mask: str) -> None:
    config = parse_config("", [*TINY, "data.labels=ignore", f"output.mask={mask}"])
    setting = Setting(config, None, "small", every=1, samples=20)
    exported, fresh = (
        [measured.line for measured in simulate.measure(dataclasses.replace(setting, masks=masks))]
        for masks in ("exported", "fresh")
    )
    assert exported[-1]["FD (small)"] != fresh[-1]["FD (small)"]
    assert exported[-1]["up_bytes"] == fresh[-1]["up_bytes"]
    name = f"FD (small) of {MASKS} exported masks, spread"
    assert name not in exported[0]
    assert exported[-1].get(name) == fresh[-1].get(name)
    assert (name in exported[-1]) == (mask == "sample")
