"""The fast local step and the published recipe written down directly give the same numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from benchmarks.published import MaskedLayer, PublishedRecipe
from benchmarks.step_speed import compare, step_config
from client.loss import real_moments
from client.trainer import PrismTrainer
from common.downlink import initial_state
from common.encoders import load_small
from common.model import upsample
from common.model.architecture import Architecture, LayerSpec
from common.model.frozen import frozen_weights
from common.model.upsample import doubled_convolution
from common.state import SCORE_UNIT

CPU = torch.device("cpu")


@pytest.mark.parametrize("many", [1, 10_000])
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 4, 4), (1, 5, 3, 6)])
def test_convolving_a_doubled_map(
    shape: tuple[int, ...], many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both forms against interpolation and convolution, with their gradients."""
    monkeypatch.setattr(upsample, "_MANY_CHANNELS", many)
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    ours = doubled_convolution(x, weight)
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, (x, weight), upstream)
    torch.testing.assert_close(torch.autograd.grad(ours, (x, weight), upstream), expected)


def test_losses_are_the_published_ones() -> None:
    compared = compare(step_config(4, 8, steps=2, image_size=16), load_small(), repeats=1)
    assert len(compared.ours) == len(compared.published) == 2
    assert compared.loss_error < 1e-5
    # Adam's first step divides a gradient by itself, so a rounded one may change its sign.
    assert compared.published[1] == pytest.approx(compared.ours[1], rel=1e-3)
    assert compared.ratio > 0


def test_gradients_are_the_published_ones() -> None:
    config = step_config(4, 8, steps=1, image_size=16)
    encoder = load_small()
    images = torch.randint(0, 256, (16, 1, 16, 16), dtype=torch.uint8)
    real, state = real_moments(encoder, [images], CPU), initial_state(config)
    architecture = Architecture.of(config)
    reference = PublishedRecipe(
        config,
        encoder,
        real,
        torch.from_numpy(frozen_weights(architecture, config.seed)),
        torch.from_numpy(state.scores.astype(np.float32) / SCORE_UNIT),
    )
    trainer = PrismTrainer(config, encoder, real, CPU)
    with torch.no_grad():
        trainer._trained.copy_(torch.from_numpy(trainer._start(state)))
    trainer._step(torch.Generator().manual_seed(3))
    noise = torch.Generator().manual_seed(3)
    z = torch.randn(8, architecture.latent, generator=noise)
    reference.step(z, torch.rand(architecture.dimension, generator=noise).numpy())
    assert trainer._trained.grad is not None
    published = torch.cat([layer.scores.grad.flatten() for layer in reference.generator.layers])
    largest = published.abs().max().item()
    torch.testing.assert_close(trainer._trained.grad, published, atol=1e-4 * largest, rtol=1e-3)


def test_the_reference_samples_its_own_masks() -> None:
    spec = LayerSpec("one", "transposed", (1, 1000, 4, 4), 1, offset=0)
    layer = MaskedLayer(spec, torch.ones(16_000), torch.ones(16_000))
    mask = layer(torch.ones(1, 1, 1, 1))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(torch.sigmoid(torch.ones(())).item(), abs=0.02)


def test_half_precision_is_close() -> None:
    full = step_config(4, 16, steps=1, image_size=16)
    half = step_config(4, 16, steps=1, image_size=16, precision="bfloat16")
    compared = compare(half, load_small(), repeats=1)
    assert 0 < compared.loss_error < 1e-3
    assert full.run_id() != half.run_id()


def test_the_command_line() -> None:
    import typer

    from benchmarks.step_speed import main

    app = typer.Typer()
    app.command()(main)
    words = ["--batch", "4", "--width", "2", "--encoder", "small", "--repeats", "1", "--json"]
    threads = torch.get_num_threads()
    result = CliRunner().invoke(app, words)
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert facts["ratio"] > 0
    assert facts["batch"] == 4
