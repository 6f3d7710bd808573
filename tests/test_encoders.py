import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from common.compat import torchvision
from common.encoders import load_encoder, load_vgg19_bn
from common.encoders.base import fold
from common.encoders.rounding import round_kernels
from common.encoders.small import BUNDLED
from common.errors import ConfigError, ModelFileError

DIGEST = "4c33940bcb1e9fca4d35321e16cf9a311bb38d445e2372ba60e394e901e94c91"


def images(channels: int, size: int = 32, n: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((n, channels, size, size), generator=generator) * 2 - 1


def test_small_is_bundled_small_and_known() -> None:
    assert BUNDLED.stat().st_size < 2**20
    assert load_encoder("small").digest().hex() == DIGEST


def test_small_is_what_its_description_says() -> None:
    tensors = {name: values.float() for name, values in load_file(BUNDLED).items()}
    x, expected = images(3), []
    for index in range(4):
        x = F.conv2d(x, tensors[f"conv{index}.weight"], tensors[f"conv{index}.bias"], padding=1)
        x = F.relu(x)
        expected.append(x)
        x = F.max_pool2d(x, 2)
    got = load_encoder("small")(images(3))
    assert [tuple(f.shape[1:]) for f in got] == [
        (32, 32, 32),
        (64, 16, 16),
        (128, 8, 8),
        (128, 4, 4),
    ]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["small", "vgg19_bn"])
@pytest.mark.parametrize("size", [16, 32])
def test_grey_counts_as_three_equal_channels(name: str, size: int) -> None:
    encoder = load_encoder("small") if name == "small" else load_vgg19_bn((0, 5), random_seed=1)
    grey = images(1, size)
    for a, b in zip(encoder(grey), encoder(grey.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_layers_and_pool() -> None:
    whole = load_encoder("small")(images(3))
    some = load_encoder("small", layers=(3, 1), pool=8)
    got = some(images(3))
    assert [tuple(f.shape[1:]) for f in got] == some.shapes(32) == [(64, 8, 8), (128, 4, 4)]
    torch.testing.assert_close(got[0], F.avg_pool2d(whole[1], 2))
    torch.testing.assert_close(got[1], whole[3])
    assert len(load_encoder("small", layers=(0,)).convolutions) == 1


def test_frozen_and_independent_of_the_batch() -> None:
    encoder = load_encoder("small")
    assert not any(p.requires_grad for p in encoder.parameters())
    x = images(3).requires_grad_()
    alone = encoder(x[:1])[-1]
    encoder.train()
    torch.testing.assert_close(encoder(x)[-1][:1], alone, rtol=1e-4, atol=1e-5)
    sum(f.mean() for f in encoder(x)).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all((f >= 0).all() for f in encoder(x))


def test_folding_is_the_normalisation_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 8, 3, padding=1, bias=True), nn.BatchNorm2d(8)
    assert conv.bias is not None
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert values is not None
            values.uniform_(0.5, 2)
        weight, bias = fold(
            conv.weight, {**norm.state_dict(), "conv_bias": conv.bias.detach()}, norm.eps
        )
        expected = norm.eval()(conv(images(3)))
        torch.testing.assert_close(
            F.conv2d(images(3), weight, bias, padding=1), expected, rtol=1e-5, atol=1e-5
        )


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """torchvision's own layers with statistics that are not trivial; no classifier."""
    torch.manual_seed(0)
    layers = torchvision.models.vgg.cfgs["E"]
    features: nn.Module = torchvision.models.vgg.make_layers(layers, batch_norm=True)
    for module in features.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) * 0.2 + 0.1
    return features.eval()


def published_names(reference: nn.Module) -> dict[str, torch.Tensor]:
    return {f"features.{name}": values for name, values in reference.state_dict().items()}


@torch.no_grad()
def test_vgg19_is_torchvisions(reference: nn.Module, tmp_path: Path) -> None:
    torch.save(published_names(reference), tmp_path / "vgg.pth")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    x, expected = ((images(3) + 1) / 2 - mean) / std, []
    for layer in reference.children():
        x = layer(x).clone()
        if isinstance(layer, nn.ReLU):
            expected.append(x)
    encoder = load_encoder("vgg19_bn", weights=tmp_path / "vgg.pth")
    got = encoder(images(3))
    assert len(got) == 16
    assert [tuple(f.shape[1:]) for f in got] == encoder.shapes(32)
    assert sum(f[0].numel() for f in got) == 303_104
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-6)
    pooled = load_encoder("vgg19_bn", pool=1, weights=tmp_path / "vgg.pth")
    assert sum(c * h * w for c, h, w in pooled.shapes(32)) == 5504
    assert pooled.digest() == encoder.digest()


def test_random_vgg_is_reproducible_and_alive() -> None:
    one, two = (load_vgg19_bn(random_seed=3) for _ in range(2))
    assert one.digest() == two.digest() != load_vgg19_bn((0,), random_seed=4).digest()
    last = one(images(3))[-1]
    assert last.shape == (4, 512, 2, 2)
    assert 1e-3 < float(last.std()) < 1e3


def test_failed_download_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ModelFileError, match=r"cannot download .*no route.*fetch https://"):
        load_encoder("vgg19_bn")


@pytest.mark.parametrize("kind", ["missing", "text", "other", "half"])
@pytest.mark.parametrize("name", ["small", "vgg19_bn"])
def test_weights_that_do_not_fit(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if name == "small" else "w.pth")
    if kind == "text":
        path.write_text("no weights at all")
    elif kind == "other" and name == "small":
        save_file({"conv0.weight": torch.zeros(1)}, path)
    elif kind == "other":
        torch.save({"features.0.weight": torch.zeros(1)}, path)
    elif kind == "half":
        path.write_bytes(BUNDLED.read_bytes()[:2000])
    with pytest.raises(ModelFileError, match=r"w\.(pth|safetensors)"):
        load_encoder(name, weights=path)


@pytest.mark.parametrize("layers", [(), (4,), (-1,), (1, 1)])
def test_layers_that_do_not_exist(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.layers"):
        load_encoder("small", layers=layers)


def test_unknown_encoder() -> None:
    with pytest.raises(ConfigError, match="unknown encoder 'resnet'; known are small, "):
        load_encoder("resnet")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees() -> None:
    encoder = load_encoder("small")
    expected = encoder(images(1))
    for a, b in zip(encoder.to("cuda")(images(1).to("cuda")), expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-2, atol=1e-2)


def test_rounded_kernels_keep_their_sums() -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 32, 3, 3)
    rounded, nearest = round_kernels(weight).float(), weight.bfloat16().float()
    assert torch.equal(rounded, rounded.bfloat16().float())
    # The carried error of one tap, then half a unit in the last place of its own.
    largest = weight.abs().amax(dim=(2, 3), keepdim=True)
    assert ((rounded - weight).abs() <= largest * 2**-7).all()
    plain, ours = (((w - weight).sum(dim=(2, 3))).abs().mean() for w in (nearest, rounded))
    assert ours < plain / 8


@pytest.mark.parametrize("channels", [1, 3])
def test_the_rounded_encoder_is_the_same_to_rounding(channels: int) -> None:
    encoder = load_encoder("small", pool=4)
    x = images(channels, n=8)
    for plain, rounded in zip(encoder(x), encoder.rounded()(x), strict=True):
        assert rounded.dtype == torch.bfloat16
        assert rounded.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(rounded.float(), plain, atol=0.02 * plain.max().item(), rtol=0)
        assert rounded.float().mean().item() == pytest.approx(plain.mean().item(), rel=1e-3)
    assert all(c.weight.dtype == torch.float32 for c in encoder.convolutions)
