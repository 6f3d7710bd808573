"""Architecture, frozen weights, masked layers, and the exported model."""

import hashlib
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.config import parse_config
from common.downlink import initial_state
from common.errors import ModelFileError, RunMismatch
from common.fingerprint import Fingerprint
from common.layout import update_layout
from common.masks import Mask
from common.model.architecture import Architecture, LayerSpec
from common.model.export import build_model, load_model
from common.model.frozen import frozen_weights, weights_digest
from common.model.generator import batch_statistics, calibrate, generate, normalised_widths
from common.model.masked import apply_layer, sample_mask
from common.state import GlobalState

TINY = parse_config('[model]\nwidth = 2\nimage_size = 16\nlatent = 8\n[data]\nname = "digits"')

KNOWN_DIGEST = "91b1b89fa4f66dc447fceef724715f94f83bdf6d1c124361ceecb335c820d67f"
KNOWN_SIGNS = "d269bbc785bd65ebbc6d69d831b9534692f426c49e51c2f946b2a04e45803727"


@pytest.mark.parametrize(
    ("width", "size", "channels", "dimension"),
    [(64, 32, 1, 3_543_616), (64, 32, 3, 3_544_768), (16, 32, 1, 418_192)],
)
def test_dimensions_are_the_papers(width: int, size: int, channels: int, dimension: int) -> None:
    assert Architecture(128, width, size, channels).dimension == dimension


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_layers_tile_and_images_have_their_size(size: int) -> None:
    architecture = Architecture(8, 2, size, 3)
    ends = [layer.offset + layer.count for layer in architecture.layers]
    assert [layer.offset for layer in architecture.layers] == [0, *ends[:-1]]
    weights = torch.from_numpy(frozen_weights(architecture, 1))
    images = generate(architecture, torch.randn(3, 8), weights)
    assert images.shape == (3, 3, size, size)
    assert images.abs().max() <= 1


def test_frozen_weights_known_answer() -> None:
    """Server and client on different machines build these bits."""
    architecture = Architecture(8, 2, 16, 1)
    assert weights_digest(architecture, 1).hex() == KNOWN_DIGEST
    weights = frozen_weights(architecture, 1)
    assert hashlib.sha256(np.sign(weights).astype("<i1").tobytes()).hexdigest() == KNOWN_SIGNS
    for layer in architecture.layers:
        part = weights[layer.offset : layer.offset + layer.count]
        assert np.allclose(np.abs(part), np.sqrt(2 / layer.fan_in))
    assert abs(np.sign(frozen_weights(Architecture(128, 16, 32, 1), 1)).mean()) < 0.01


def test_fingerprints_name_what_differs() -> None:
    mine = Fingerprint.of(TINY)
    mine.check(Fingerprint.of(TINY))
    for change, message in [
        ({"seed": 9}, "seed"),
        ({"dimension": 3}, "3 parameters"),
        ({"weights_digest": b""}, "weights digest"),
        ({"tables_digest": b""}, "tables digest"),
        ({"run_id": b""}, "run id"),
    ]:
        with pytest.raises(RunMismatch, match=message):
            mine.check(replace(mine, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(
    ("kind", "shape", "inputs"),
    [
        ("conv", (4, 3, 3, 3), (2, 3, 5, 5)),
        ("transposed", (3, 4, 4, 4), (2, 3, 1, 1)),
    ],
)
def test_masked_gradients_against_the_written_out_expression(
    kind: str, shape: tuple[int, ...], inputs: tuple[int, ...], scaled: bool
) -> None:
    """The backward pass is autograd's on M + (g - g.detach()), g = theta or theta^2 / 2."""
    torch.manual_seed(0)
    layer = LayerSpec("one", kind, shape, 3, offset=5)  # type: ignore[arg-type]
    frozen = torch.randn(5 + layer.count + 2, dtype=torch.float64)
    uniform, x = torch.rand(frozen.shape), torch.randn(inputs, dtype=torch.float64)
    scores = torch.randn(frozen.shape, dtype=torch.float64, requires_grad=True)
    mask = sample_mask(scores, uniform, scaled=scaled)
    own = (frozen * mask)[5 : 5 + layer.count].view(shape)
    apply_layer(layer, x, own).square().sum().backward()  # type: ignore[no-untyped-call]

    written = scores.detach().clone().requires_grad_()
    theta = torch.sigmoid(written)
    surrogate = theta.square() / 2 if scaled else theta
    hard = (uniform < theta).double() + surrogate - surrogate.detach()
    weight = (frozen * hard)[5 : 5 + layer.count].view(shape)
    operation = {
        "conv": lambda: F.conv2d(x, weight, padding=1),
        "transposed": lambda: F.conv_transpose2d(x, weight),
    }[kind]
    operation().square().sum().backward()  # type: ignore[no-untyped-call]

    assert torch.equal(mask.detach(), (uniform < theta).double())
    assert scores.grad is not None
    assert written.grad is not None
    torch.testing.assert_close(scores.grad, written.grad)
    assert scores.grad[:5].abs().sum() == scores.grad[-2:].abs().sum() == 0


def test_mask_frequencies_are_the_probabilities() -> None:
    scores = torch.tensor([-2.0, 0.0, 1.0]).repeat(40_000, 1)
    uniform = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))
    frequency = sample_mask(scores, uniform, scaled=True).mean(0)
    torch.testing.assert_close(frequency, torch.sigmoid(scores[0]), atol=0.01, rtol=0)


def test_calibrated_statistics_normalise() -> None:
    architecture = Architecture(8, 4, 16, 1)
    weights = torch.from_numpy(frozen_weights(architecture, 1))
    fixed = calibrate(architecture, weights, torch.Generator().manual_seed(0))
    assert [len(mean) for mean in fixed.means] == normalised_widths(architecture)
    z = torch.randn(512, 8, generator=torch.Generator().manual_seed(1))
    stored = generate(architecture, z, weights, fixed)
    torch.testing.assert_close(
        stored, generate(architecture, z, weights, batch_statistics), atol=0.1, rtol=0
    )


def test_layouts_tile_for_every_alpha() -> None:
    for alpha in np.linspace(0, 1, 23):
        layout = update_layout(TINY.model_copy(update={"alpha": float(alpha)}))
        assert layout[0].offset == 0
        assert sum(segment.count for segment in layout) == Architecture.of(TINY).dimension
    assert [segment.kind for segment in layout] == ["score"]


@pytest.mark.parametrize("mask", ["sample", "threshold"])
def test_a_model_file_is_enough(tmp_path: Path, mask: str) -> None:
    config = parse_config(TINY.to_toml(), [f"output.mask={mask}"])
    path = tmp_path / "model.prism"
    built = build_model(config, initial_state(config))
    built.save(path)
    loaded = load_model(path)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert torch.equal(loaded.sample(5, seed=3), built.sample(5, seed=3))
    assert not torch.equal(loaded.sample(5, seed=3), loaded.sample(5, seed=4))
    assert loaded.sample(300).shape == (300, 1, 16, 16)
    assert loaded.sample(0).shape == (0, 1, 16, 16)
    assert path.stat().st_size <= Architecture.of(config).dimension / 8 + 16 * 1024


def test_trained_weights_are_exported_too(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=Architecture.of(TINY).dimension)
    state = GlobalState(3, weights.astype(np.float32))
    build_model(TINY, state).save(tmp_path / "m")
    assert load_model(tmp_path / "m").sample(2).shape == (2, 1, 16, 16)


def test_every_damaged_model_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.prism"
    build_model(TINY, initial_state(TINY)).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:cut] for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1)]
    for position in rng.integers(0, len(whole), 60):
        broken = bytearray(whole)
        broken[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(broken))
    damaged += [whole + b"x", struct.pack("<Q", 2**62) + whole[8:], b"{}" * 50]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ModelFileError) as caught:
            load_model(path)
        assert len(str(caught.value).splitlines()) == 1
    built = build_model(TINY, initial_state(TINY))
    for change in ({"image_size": 17}, {"channels": 2}, {"width": True}, {"width": 10**9}):
        replace(built, architecture=replace(built.architecture, **change)).save(path)
        with pytest.raises(ModelFileError, match="no consistent model"):
            load_model(path)
    assert isinstance(built.parameters, Mask)
    longer = built.parameters + Mask("1")
    assert len(longer.tobytes()) == len(built.parameters.tobytes()), "one more bit, not byte"
    replace(built, parameters=longer).save(path)
    with pytest.raises(ModelFileError, match="no consistent model"):
        load_model(path)
    with pytest.raises(ModelFileError, match="no model at"):
        load_model(tmp_path / "none.prism")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("statistics", ["means", "variances"])
def test_statistics_that_cannot_be_are_refused(
    tmp_path: Path, statistics: str, value: float
) -> None:
    """The digest of such a file is right: whoever wrote it computed it anew."""
    built = build_model(TINY, initial_state(TINY))
    spoilt = getattr(built, statistics).copy()
    spoilt[0] = value
    replace(built, **{statistics: spoilt}).save(tmp_path / "m")
    with pytest.raises(ModelFileError, match=f"one of its {statistics} is not a number"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"variances": -1}, "a variance is negative"),
        ({"seed": -1}, "no run has seed -1"),
        ({"seed": 2**63}, "no run has seed"),
        ({"round": -1}, "no run has seed 1 and round -1"),
        ({"class_names": ("a", "a")}, "classes contradict each other"),
        ({"class_names": ("a", "b")}, "has shape"),
    ],
)
def test_models_that_cannot_be_are_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    built = build_model(TINY, initial_state(TINY))
    if "variances" in change:
        change = {"variances": change["variances"] * built.variances}
    replace(built, **change).save(tmp_path / "m")
    with pytest.raises(ModelFileError, match=says) as raised:
        load_model(tmp_path / "m")
    assert "\n" not in str(raised.value)


def test_half_precision_does_not_scale_a_layer() -> None:
    """Signed constants in bfloat16: only the result is rounded, not the constant."""
    layer = LayerSpec("one", "conv", (1, 1, 1, 1), 576, offset=0)
    x = torch.ones(1, 1, 2, 2)
    # Of 25 times the constant, rounding the constant first would give another bfloat16.
    with torch.autocast("cpu", torch.bfloat16):
        out = apply_layer(layer, 25 * x, torch.full(layer.shape, layer.magnitude))
    assert torch.equal(out.float(), (25 * x * layer.magnitude).bfloat16().float())


def test_half_precision_normalises_by_statistics_in_full() -> None:
    torch.manual_seed(0)
    x = (3 + torch.randn(32, 8, 8, 8)).bfloat16().contiguous(memory_format=torch.channels_last)
    # Statistics in bfloat16 are off by twice as much.
    spread = batch_statistics(x, 0).float().std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(spread, torch.ones(8), atol=1.5e-3, rtol=0)
