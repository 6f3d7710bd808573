"""The local step against its written equations, and what survives a restart."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from client.local_images import LocalImages, local_moments
from client.loss import Moments, MovingAverages, feature_moments, real_moments, unbiased
from client.store import ClientStore, MadeUpdate
from client.trainer import PrismTrainer, draw_spread, learning_rate
from client.update import encode_update, update_bits
from common.codecs import mask_codec
from common.config import RunConfig, parse_config
from common.data import load_images, open_source, to_unit
from common.downlink import initial_state
from common.encoders import load_encoder
from common.errors import DataError, StorageError
from common.layout import mask_context, update_layout
from common.model.architecture import Architecture
from common.model.frozen import frozen_weights
from common.report import Report
from common.sections import CodecConfig, TrainConfig
from common.state import SCORE_UNIT, GlobalState, sigma
from common.theory import MaskBits

CPU = torch.device("cpu")
TINY = parse_config(
    'rounds = 3\n[data]\nlabels = "ignore"\n'
    "[model]\nwidth = 2\nimage_size = 16\nlatent = 8\n"
    "[train]\nlocal_steps = 2\nbatch_size = 8"
)


def digits_trainer(config: RunConfig = TINY, device: torch.device = CPU) -> PrismTrainer:
    encoder = load_encoder("small").to(device)
    images = load_images(open_source("digits"), np.arange(40), 16, 1)
    return PrismTrainer(config, encoder, real_moments(encoder, [images], device), device)


def test_real_moments_are_those_of_all_images_at_once() -> None:
    encoder = load_encoder("small")
    images = load_images(open_source("digits"), np.arange(40), 16, 1)
    moments = real_moments(encoder, images.split(17), CPU)
    with torch.no_grad():
        features = torch.cat([layer.flatten(1) for layer in encoder(to_unit(images))], dim=1)
    torch.testing.assert_close(moments.mean[0], features.mean(0), atol=1e-5, rtol=1e-4)
    expected = features.var(0, correction=0, keepdim=True)
    torch.testing.assert_close(moments.variance, expected, atol=1e-5, rtol=1e-4)
    batch = feature_moments(encoder(to_unit(images)))
    torch.testing.assert_close(batch.variance, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_batch_moments_and_their_gradients_against_autograd(groups: int) -> None:
    torch.manual_seed(0)
    fast = torch.randn(6, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    plain = fast.detach().clone().requires_grad_()
    a, b = torch.randn(2, groups, 18, dtype=torch.float64)
    moments = unbiased(feature_moments([fast], groups), 6 // groups)
    blocks = plain.flatten(1).view(groups, 6 // groups, 18)
    variance, mean = torch.var_mean(blocks, dim=1)
    torch.testing.assert_close((moments.mean, moments.variance), (mean, variance))
    ((a * moments.mean).sum() + (b * moments.variance.square()).sum()).backward()
    ((a * mean).sum() + (b * variance.square()).sum()).backward()
    torch.testing.assert_close(fast.grad, plain.grad)


def test_moments_of_classes_are_those_of_their_images() -> None:
    encoder, source = load_encoder("small"), open_source("digits")
    assert source.labels is not None
    config = parse_config("[data]\nmin_class_size = 5\n[model]\nimage_size = 16\nwidth = 1")
    images = LocalImages.of(config, source, np.arange(60))
    assert images.labels is not None
    counts = np.bincount(source.labels[:60], minlength=10)
    assert images.classes == tuple(np.flatnonzero(counts >= 5))
    moments = local_moments(encoder, images, CPU)
    assert moments.classes == images.classes
    for row, label in enumerate(images.classes):
        chosen = np.flatnonzero(source.labels[:60] == label)
        alone = real_moments(encoder, [load_images(source, chosen, 16, 1)], CPU)
        torch.testing.assert_close(moments.mean[row], alone.mean[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments.variance[row], alone.variance[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match=r"no class has 5 images here \(data.min_class_size\): 0 "):
        LocalImages.of(config, source, np.arange(9))


def test_batch_moments_keep_the_order_of_features_and_full_precision() -> None:
    """Channels last and in chunks or not, of bfloat16 features as of the same in float32."""
    torch.manual_seed(0)
    half = torch.randn(8, 3, 96, 96).relu().bfloat16()
    plain = half.float().requires_grad_()
    last = half.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected, got = feature_moments([plain]), feature_moments([last])
    assert got.mean.dtype == got.variance.dtype == torch.float32
    torch.testing.assert_close((got.mean, got.variance), (expected.mean, expected.variance))
    weights = torch.randn_like(got.mean)
    for moments in (got, expected):
        (weights * (moments.mean + moments.variance)).sum().backward()
    assert last.grad is not None
    torch.testing.assert_close(last.grad.float(), plain.grad, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("leak", [0.0, 0.25])
def test_moving_averages_by_hand(leak: float) -> None:
    """Two Adam steps written out: lr 1e-2, beta1 0.5, beta2 0.999, eps 1e-8."""
    averages = MovingAverages(2, 1, 1e-2, CPU, leak)
    v, m, u = 0.0, 0.0, 0.0
    for t, difference in [(1, 0.5), (2, -0.3)]:
        real = Moments(torch.tensor([[9.0], [difference]]), torch.tensor([[9], [2 * difference]]))
        generated = Moments(torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1))
        # The first group was not drawn: neither its averages nor their step counts move.
        loss = averages.step(real, generated, [1])
        assert averages.mean[0].item() == averages.variance[0].item() == 0
        v *= 1 - leak
        gradient = 2 * (v - difference)
        m = 0.5 * m + 0.5 * gradient
        u = 0.999 * u + 0.001 * gradient**2
        v -= 1e-2 * (m / (1 - 0.5**t)) / ((u / (1 - 0.999**t)) ** 0.5 + 1e-8)
        assert averages.mean[1].item() == pytest.approx(v, rel=1e-5)
        expected = v * difference + averages.variance[1].item() * 2 * difference
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()  # type: ignore[no-untyped-call]
        # Only the generated moments carry a gradient, and it is minus the average.
        assert generated.mean.grad is not None
        assert generated.mean.grad.item() == pytest.approx(-v, rel=1e-5)


def test_training_is_reproducible_and_moves_the_scores() -> None:
    state = initial_state(TINY)
    first = digits_trainer().train(state, "a")
    assert np.array_equal(first.values, digits_trainer().train(state, "a").values)
    assert not np.array_equal(first.values, digits_trainer().train(state, "b").values)
    assert not np.array_equal(first.values, state.scores)
    assert np.isfinite(first.loss)


def test_a_restarted_trainer_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    state = initial_state(TINY)
    steady = digits_trainer()
    made = MadeUpdate(0, 0, 1, (b"payload",), Report(0.5, MaskBits(0.8, 0.1)), 1.5)
    steady.train(state, "a")
    store = ClientStore(tmp_path, "a")
    store.save(b"run", steady.state_dict(), made)
    second = copy.deepcopy(steady.train(state, "a").values)

    restarted = digits_trainer()
    assert not np.array_equal(digits_trainer().train(state, "a").values, second)
    kept = store.load(b"run")
    assert kept is not None
    restarted.load_state_dict(kept[0])
    store.close()
    assert kept[1] == made
    assert np.array_equal(restarted.train(state, "a").values, second)


def test_the_store(tmp_path: Path) -> None:
    update = MadeUpdate(0, 0, 1, (b"",), Report(), 0.0)
    store = ClientStore(tmp_path / "s", None)
    assert store.load(b"run") is None
    store.save(b"run", {}, update)
    assert store.load(b"run") == ({}, update)
    assert store.load(b"another run") is None
    (tmp_path / "s" / "trainer.pt").write_bytes(b"damaged")
    with pytest.raises(StorageError, match="delete it"):
        store.load(b"run")
    store.close()
    ClientStore(None, "a").save(b"run", {}, update)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot use --state"):
        ClientStore(tmp_path / "file", None)


def test_a_flipped_bit_in_what_a_client_keeps_is_noticed(tmp_path: Path) -> None:
    """Every byte of the small file, and as many of the large one, each with another bit."""
    store = ClientStore(tmp_path, None)
    identity = store.identity()
    averages = {"averages": torch.arange(64.0)}
    store.save(b"run", averages, MadeUpdate(0, 0, 1, (b"update",), Report(), 0.0))
    for name, read in (("client.json", store.identity), ("trainer.pt", lambda: store.load(b"run"))):
        path = tmp_path / name
        whole = path.read_bytes()
        for position in np.linspace(0, len(whole) - 1, 110, dtype=int):
            broken = bytearray(whole)
            broken[position] ^= 1 << int(position % 8)
            path.write_bytes(broken)
            with pytest.raises(StorageError, match=f"{name} is damaged.*delete it") as raised:
                read()
            assert "\n" not in str(raised.value)
        path.write_bytes(whole)
        assert read()
    # As a version before the digest wrote it.
    kept = {"name": identity[0], "instance": identity[1].hex()}
    (tmp_path / "client.json").write_text(json.dumps(kept))
    assert store.identity() == identity
    store.close()


def test_identities_are_kept(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, None)
    identity = store.identity()
    with pytest.raises(StorageError, match="another client is using"):
        ClientStore(tmp_path, None)
    store.close()
    again = ClientStore(tmp_path, None)
    assert again.identity() == identity
    again.close()
    renamed = ClientStore(tmp_path, "b")
    assert renamed.identity()[0] == "b"
    assert renamed.identity()[1] != identity[1]
    (tmp_path / "client.json").write_text("[]")
    with pytest.raises(StorageError, match=r"client\.json is damaged"):
        renamed.identity()
    renamed.close()


def test_learning_rate_schedule() -> None:
    constant, cosine = (
        TrainConfig(learning_rate=0.1, learning_rate_final=final) for final in (0.1, 0.02)
    )
    assert [learning_rate(constant, t, 3) for t in range(3)] == [0.1] * 3
    assert [learning_rate(cosine, t, 3) for t in range(3)] == pytest.approx([0.1, 0.06, 0.02])


@pytest.mark.parametrize(
    ("annealing", "spreads"),
    [(0.0, [1, 1, 1, 1, 1]), (1.0, [1, 0.75, 0.5, 0.25, 0]), (2.0, [1, 0.5, 0, 0, 0])],
)
def test_annealing_schedule(annealing: float, spreads: list[float]) -> None:
    train = TrainConfig(annealing=annealing)
    assert [draw_spread(train, t, 5) for t in range(5)] == pytest.approx(spreads)
    assert draw_spread(train, 0, 1) == 1


@pytest.mark.parametrize(("round_", "spread"), [(0, 1.0), (1, 0.5), (2, 0.0)])
def test_training_masks_close_in_on_the_threshold(round_: int, spread: float) -> None:
    """Sampled from theta stretched around 1/2, and thresholded in the last round."""
    trainer = digits_trainer()
    scores = initial_state(TINY).scores
    trainer.train(GlobalState(round_, scores), "a")
    with torch.no_grad():
        trainer._trained.copy_(torch.from_numpy(scores.astype(np.float32) / SCORE_UNIT))
    noise = torch.Generator().manual_seed(0)
    masks = np.stack([trainer._effective_weights(noise).detach() != 0 for _ in range(400)])
    theta = sigma(scores) / 65536
    if spread == 0:
        assert (masks == (theta > 0.5)).all()
        frozen = frozen_weights(Architecture.of(TINY), TINY.seed)
        last = trainer._effective_weights(noise).detach().numpy()
        assert np.array_equal(last, frozen * (scores > 0))
    else:
        expected = np.clip((theta - 0.5) / spread + 0.5, 0, 1)
        # Over 1,622 parameters, no mean of 400 draws lies further off than five deviations.
        assert np.abs(masks.mean(0) - expected).max() < 5 * 0.5 / 20


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_an_update_has_one_payload_a_segment(alpha: float) -> None:
    raw = CodecConfig(up="raw")
    config = TINY.model_copy(update={"alpha": alpha, "codec": raw})
    state = initial_state(config)
    scores = np.clip(state.scores.astype(int) + 3 * SCORE_UNIT, -32768, 32767).astype(np.int16)
    payloads = encode_update(config, state, scores, rank=0, cohort_size=1, client="a")
    expected = None
    for segment, payload in zip(update_layout(config), payloads, strict=True):
        if segment.kind == "score":
            assert payload == scores[segment.slice].astype("<i2").tobytes()
        else:
            assert len(payload) == -(-segment.count // 8)
            context = mask_context(config, state, segment, 0, 1)
            mask = mask_codec("raw").decode(payload, context)
            theta = sigma(scores[segment.slice]) / 65536
            assert abs(mask.count() / segment.count - theta.mean()) < 0.03
            start = sigma(state.scores[segment.slice])
            expected = MaskBits.of(start, sigma(scores[segment.slice]))
    assert update_bits(config, state, scores) == expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_training_runs_on_cuda() -> None:
    result = digits_trainer(device=torch.device("cuda")).train(initial_state(TINY), "a")
    assert np.isfinite(result.loss)
