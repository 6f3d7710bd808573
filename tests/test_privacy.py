"""The mechanisms, the ledger and the guard: what is promised, refused, recorded and said."""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch import Tensor, nn

import client.mechanisms
from client.ledger import Entry, Ledger, total_epsilon
from client.loss import Moments, normalised_moments
from client.mechanisms import (
    calibrate_mask_noise,
    calibrate_moments,
    check_encoder,
    noisy_values,
    planned_epsilon,
    release_moments,
)
from client.methods import make_trainer
from client.noise import discrete_gaussian
from client.privacy_guard import Guard
from common.accounting import compose, gaussian_epsilon, gaussian_sigma
from common.config import PrivacyConfig, RunConfig, parse_config
from common.data import load_images, open_source
from common.downlink import initial_state
from common.encoders import load_encoder
from common.errors import ConfigError, PrivacyError, StorageError
from common.state import sigma
from prism.commands.privacy import privacy as privacy_command

CPU = torch.device("cpu")
TINY = """
rounds = 4
[model]
width = 1
latent = 1
image_size = 16
[encoder]
pool = 2
[train]
local_steps = 1
batch_size = 4
"""
IMAGES = load_images(open_source("digits"), np.arange(60), 16, 1)
ENCODER = load_encoder("small", pool=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(mechanism: str = "moments", *changes: str, **privacy: Any) -> RunConfig:
    settings_ = [f"privacy.mechanism={mechanism}"]
    settings_ += [f"privacy.{key}={value}" for key, value in privacy.items()]
    return parse_config(TINY, [*settings_, *changes])


def released(state: Path, run: RunConfig, images: Tensor = IMAGES, **options: Any) -> Moments:
    """What a new client process trains on."""
    guard = Guard(state, **options)
    guard.agree(run)
    return guard.moments(run, ENCODER, lambda: images.split(32), len(images), CPU)


# The sampler


def test_the_sampler_is_a_discrete_gaussian() -> None:
    """Exact by construction; a chi-square test fails an exact sampler once in a million."""
    drawn = discrete_gaussian(50_000, sigma_bits=1)
    values = np.arange(-8, 9)
    weights = np.exp(-(values**2) / 8)
    observed = np.array([(drawn == value).sum() for value in values])
    total = weights.sum() + 2 * np.exp(-81 / 8)
    expected = observed.sum() * weights / weights.sum()
    assert chisquare(observed, expected).pvalue > 1e-6
    assert observed.sum() > 0.99 * drawn.size * weights.sum() / total


def test_on_the_fine_grid_it_is_gaussian_and_never_the_same() -> None:
    drawn = discrete_gaussian(50_000)
    assert kstest(drawn / 2**24, "norm").pvalue > 1e-6
    assert not np.array_equal(drawn, discrete_gaussian(50_000))


# The release


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([0.0, 1e-6, 1.0, 1e6]))
def test_replacing_a_record_moves_each_sum_by_sqrt_2_at_most(
    seed: int, features: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    one, two = (rng.random((1, features, 1, 1)) ** 8 for _ in range(2))
    one[0, : features // 2] = 0
    two[0, features // 2 :] *= scale
    grid = 1e-7
    sums = [client.mechanisms._unit_sums([torch.from_numpy(x)], grid) for x in (one, two)]
    distances = np.linalg.norm((sums[0] - sums[1]).astype(float) * grid, axis=1)
    assert (distances <= math.sqrt(2)).all()
    assert (np.linalg.norm(sums[0].astype(float) * grid, axis=1) <= 1).all()


def test_worst_case_neighbours_reach_the_sensitivity() -> None:
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    sums = [client.mechanisms._unit_sums([x.view(1, 2, 1, 1)], 1e-9) for x in (one, two)]
    distance = np.linalg.norm((sums[0] - sums[1]).astype(float) * 1e-9, axis=1)
    np.testing.assert_allclose(distance, math.sqrt(2), rtol=1e-8)


def test_without_much_noise_the_release_is_the_mean_of_the_maps() -> None:
    features = [torch.rand(50, 3, 2, 2), torch.rand(50, 4, 1, 1)]
    calibration = calibrate_moments(PrivacyConfig(epsilon=1e4), 50)
    made = release_moments([features], calibration)
    exact = normalised_moments(features)
    noise = 6 * calibration.sigmas[0]
    torch.testing.assert_close(made.mean, exact.mean, atol=noise, rtol=0)
    torch.testing.assert_close(made.variance, exact.variance, atol=noise, rtol=0)
    whole = torch.cat([layer.flatten(1) for layer in features], dim=1)
    torch.testing.assert_close(exact.mean, nn.functional.normalize(whole).mean(0))
    torch.testing.assert_close(exact.variance, nn.functional.normalize(whole**2).mean(0))


def test_the_noise_is_as_large_as_calibrated() -> None:
    n = 100
    calibration = calibrate_moments(PrivacyConfig(epsilon=1.0), n)
    sigma_0 = gaussian_sigma(1.0, 1e-5)
    assert calibration.sensitivities == pytest.approx([math.sqrt(2) / n] * 2)
    assert calibration.sigmas == pytest.approx([2 * sigma_0 / n] * 2)
    assert calibration.mu == pytest.approx(1 / sigma_0)
    made = release_moments([[torch.zeros(n, 20_000, 1, 1)]], calibration)
    for moment in (made.mean, made.variance):
        assert float(moment.std()) == pytest.approx(calibration.sigmas[0], rel=0.04)


def test_normalised_moments_have_gradients() -> None:
    x = torch.rand(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def both(y: Tensor) -> tuple[Tensor, Tensor]:
        moments = normalised_moments([y, y.square()])
        return moments.mean, moments.variance

    assert torch.autograd.gradcheck(both, (x,))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_features_that_would_break_the_sensitivity_are_refused(bad: float) -> None:
    features = torch.ones(2, 3, 1, 1)
    features[0, 0] = bad
    with pytest.raises(PrivacyError, match="negative or not finite"):
        release_moments([[features]], calibrate_moments(PrivacyConfig(), 2))


def test_noise_for_another_number_of_images_is_refused() -> None:
    with pytest.raises(PrivacyError, match="calibrated for 3 images, and there are 2"):
        release_moments([[torch.ones(2, 3, 1, 1)]], calibrate_moments(PrivacyConfig(), 3))


def test_delta_must_be_below_one_in_n() -> None:
    with pytest.raises(PrivacyError, match=r"below 1/n = 0\.01"):
        calibrate_moments(PrivacyConfig(delta=0.01), 100)


def test_a_batch_dependent_encoder_is_refused() -> None:
    class Batchwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, images: Tensor) -> list[Tensor]:
            return [torch.relu(self.norm(images))]

    with pytest.raises(PrivacyError, match="depend on the images beside it"):
        check_encoder(Batchwise().train(), (1, 16, 16), CPU)
    assert check_encoder(Batchwise().eval(), (1, 16, 16), CPU) == 256
    assert check_encoder(ENCODER, (1, 16, 16), CPU) == (32 + 64 + 128 + 128) * 4

    class Signed(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [images]

    with pytest.raises(PrivacyError, match="negative features"):
        check_encoder(Signed(), (1, 16, 16), CPU)


def test_training_refuses_raw_moments_under_the_mechanism(tmp_path: Path) -> None:
    raw = Moments(torch.zeros(3), torch.zeros(3))
    with pytest.raises(PrivacyError):
        make_trainer(config(), ENCODER, raw, CPU)
    result = make_trainer(config(), ENCODER, released(tmp_path, config()), CPU).train(
        initial_state(config()), "a"
    )
    assert np.isfinite(result.loss)


# The guard


def test_a_release_is_made_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = released(tmp_path, config())
    with caplog.at_level(logging.INFO):
        again = released(tmp_path, config("moments", "seed=2", "rounds=9"))
    assert "nothing is drawn" in caplog.text
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.variance, again.variance)
    (entry,) = Ledger(tmp_path).entries()
    assert (entry.unit, entry.relation, entry.n) == ("record", "replace-one, n public", 60)
    assert entry.encoder["digest"] == ENCODER.digest().hex()
    assert (entry.encoder["layers"], entry.encoder["pool"]) == ([0, 1, 2, 3], 2)
    assert (entry.epsilon, entry.delta) == (10, 1e-5)
    # Nothing but the release and its record is on the disk.
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == ["ledger.head", "ledger.jsonl", "release"]


def test_further_releases_add_up_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    released(tmp_path, config(epsilon=1.0))
    released(tmp_path, config(epsilon=2.0))
    released(tmp_path, config(epsilon=2.0), IMAGES[:50])
    entries = Ledger(tmp_path).entries()
    expected = gaussian_epsilon(
        compose(1 / gaussian_sigma(epsilon, 1e-5) for epsilon in (1, 2, 2)), 1e-5
    )
    assert total_epsilon(entries, 1e-5) == pytest.approx(expected)
    assert f"release 3 in this ledger: they add up, to epsilon {expected:.4g}" in caplog.text
    with pytest.raises(PrivacyError, match=r"3 releases .* --max-epsilon here is 3"):
        released(tmp_path, config(epsilon=1.5), max_epsilon=3.0)
    assert len(Ledger(tmp_path).entries()) == 3


def test_a_weaker_config_is_refused(tmp_path: Path) -> None:
    for run, says in (
        (config("none"), "no privacy mechanism, and --max-epsilon here is 5"),
        (config(), '"moments" with epsilon 10 over the run'),
        (config("mask-noise", epsilon=3.0), '"mask-noise" with epsilon 6.'),
    ):
        with pytest.raises(PrivacyError, match=says):
            Guard(tmp_path, 5.0).agree(run)
    Guard(tmp_path, 5.0).agree(config(epsilon=5.0))
    released(tmp_path, config(epsilon=5.0), max_epsilon=5.0)


@pytest.mark.parametrize("mechanism", ["moments", "mask-noise"])
def test_a_mechanism_needs_a_ledger(mechanism: str) -> None:
    with pytest.raises(PrivacyError, match="needs --state DIR"):
        Guard(None).agree(config(mechanism))
    Guard(None).agree(config("none"))


def test_config_mistakes_are_one_line() -> None:
    for change, says in (
        ("privacy.seed=1", "there is no seed"),
        ("privacy.require=true", "needs a privacy.mechanism"),
        ("privacy.epsilon=0", "privacy.epsilon"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            parse_config(TINY, [change])
        assert "\n" not in str(caught.value)


def test_a_run_without_mechanism_ends_the_guarantee(tmp_path: Path) -> None:
    released(tmp_path, config())
    released(tmp_path, config("none"))
    released(tmp_path, config("none"))
    entries = Ledger(tmp_path).entries()
    assert [entry.mechanism for entry in entries] == ["moments", "none"]
    assert total_epsilon(entries, 1e-5) == math.inf


# mask-noise


def test_mask_noise_reaches_theta_and_is_recorded(tmp_path: Path) -> None:
    run = config("mask-noise", "model.width=2", "model.latent=8", epsilon=10.0)
    guard = Guard(tmp_path)
    guard.agree(run)
    guard.moments(run, ENCODER, lambda: IMAGES.split(32), len(IMAGES), CPU)
    start = initial_state(run)
    trained = np.zeros_like(start.scores)
    noisy = [guard.values(run, start, trained) for _ in range(2)]
    assert (noisy[0] != noisy[1]).mean() > 0.3
    entries = Ledger(tmp_path).entries()
    assert [entry.round for entry in entries] == [0, 0]
    assert entries[0].features == start.dimension
    assert total_epsilon(entries, 1e-5) > 15
    assert planned_epsilon(run) == pytest.approx(gaussian_epsilon(4, 1e-5), rel=1e-3)

    assert math.isnan(guard.reportable(run, 0.5))
    guard.check_report(run, math.nan)
    with pytest.raises(PrivacyError, match="it stays here"):
        guard.check_report(run, 0.5)


def test_mask_noise_clips_the_change_and_adds_what_it_says() -> None:
    run = config("mask-noise", "model.width=2", "model.latent=8")
    start = initial_state(run)
    far = np.full_like(start.scores, 20_000)
    public = sigma(start.scores) / 65536
    almost_none = PrivacyConfig(mechanism="mask-noise", epsilon=1e4, clip=0.5)
    moved = sigma(noisy_values(almost_none, start, far)) / 65536 - public
    noise = calibrate_mask_noise(almost_none).sigmas[0]
    # The noise is as long as sqrt(d) deviations; the table of logits rounds besides.
    expected = math.hypot(0.5, noise * math.sqrt(public.size))
    assert np.linalg.norm(moved) == pytest.approx(expected, rel=0.1)

    gentle = PrivacyConfig(mechanism="mask-noise", epsilon=100.0, clip=0.2)
    inner = (public > 0.45) & (public < 0.55)
    noise = calibrate_mask_noise(gentle).sigmas[0]
    assert 0.02 < noise < 0.1
    spread = (sigma(noisy_values(gentle, start, start.scores)) / 65536 - public)[inner].std()
    assert spread == pytest.approx(noise, rel=0.2)
    same = noisy_values(PrivacyConfig(), start, far)
    assert same is far


# The ledger


def entry(**changes: Any) -> Entry:
    plain = Entry("moments", "ab", None, 9, "cd", {"pool": 4}, 7, (0.1, 0.1), (1.0, 1.0), 1.0, 1e-5, None)  # fmt: skip  # noqa: E501
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path)
    for round_ in range(3):
        ledger.append(entry(round=round_))
    return ledger


def test_a_ledger_reads_back(ledger: Ledger) -> None:
    entries = ledger.entries()
    assert [e.round for e in entries] == [0, 1, 2]
    assert dataclasses.replace(entries[0], time="") == entry(round=0)
    assert entries[0].mu == pytest.approx(math.sqrt(0.02))


def test_tampering_is_detected(ledger: Ledger, tmp_path: Path) -> None:
    lines = ledger.path.read_text().splitlines(keepends=True)
    weaker = lines[1].replace('"epsilon": 1.0', '"epsilon": 0.1')
    assert weaker != lines[1]
    for forged, says in (
        ([lines[0], weaker, lines[2]], "line 2 is not what"),
        ([lines[0], lines[2]], "line 2 is not what"),
        ([lines[1], lines[0], lines[2]], "line 1 is not what"),
        (lines[:2], "missing at its end"),
        ([], "missing at its end"),
        ([*lines, "no json\n"], "line 4 is no entry"),
        ([*lines, "{}\n"], "line 4 is no entry"),
    ):
        ledger.path.write_text("".join(forged))
        with pytest.raises(StorageError, match=says):
            ledger.entries()
        with pytest.raises(StorageError, match="tampered"):
            Guard(tmp_path).agree(config())
        with pytest.raises(StorageError):
            ledger.append(entry())
    ledger.path.write_text("".join(lines))
    ledger.release_path("f" * 64).write_bytes(b"")
    with pytest.raises(StorageError, match="does not know release-"):
        ledger.entries()


def test_a_deleted_ledger_is_missed(tmp_path: Path) -> None:
    released(tmp_path, config())
    for name in ("ledger.jsonl", "ledger.head"):
        (tmp_path / name).unlink()
    with pytest.raises(StorageError, match="does not know release-"):
        released(tmp_path, config())


def test_a_forged_release_is_refused_and_a_lost_one_counts(tmp_path: Path) -> None:
    released(tmp_path, config())
    (path,) = tmp_path.glob("release-*.pt")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(StorageError, match="not what the ledger says"):
        released(tmp_path, config())
    path.unlink()
    released(tmp_path, config())
    assert len(Ledger(tmp_path).entries()) == 2


def test_a_line_that_a_crash_cut_short_is_forgotten(ledger: Ledger) -> None:
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + b'{"cut": ')
    assert len(ledger.entries()) == 3
    ledger.append(entry(round=3))
    assert [e.round for e in ledger.entries()] == [0, 1, 2, 3]


def test_a_crash_before_the_head_was_written(ledger: Ledger) -> None:
    previous = json.loads(ledger.path.read_text().splitlines()[-1])["previous"]
    (ledger.path.parent / "ledger.head").write_text(previous)
    ledger.append(entry(round=3))
    assert len(ledger.entries()) == 4


# What is said


def test_prism_privacy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(2):
        (tmp_path / "clients" / str(index)).mkdir(parents=True)
    protected, plain = (tmp_path / "clients" / str(i) for i in range(2))
    released(protected, config())
    privacy_command(tmp_path)
    said = capsys.readouterr().out
    assert (
        "Record-level (10, 1e-05)-differential privacy, replace-one, n public, entire run" in said
    )
    assert "Not covered:" in said
    assert "No formal privacy guarantee: nothing was recorded" in said
    assert Ledger(protected).entries()[0].data not in said  # type: ignore[operator]

    released(plain, config("none"))
    privacy_command(tmp_path, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["epsilon"] == pytest.approx(10)
    assert lines[1]["epsilon"] is None

    released(protected, config(epsilon=1.0))
    released(protected, config("none"))
    privacy_command(protected)
    assert "No formal privacy guarantee: at least one run" in capsys.readouterr().out
    (protected / "ledger.head").write_text("0")
    with pytest.raises(SystemExit, match="tampered"):
        privacy_command(protected)
    with pytest.raises(SystemExit, match="neither a client's --state"):
        privacy_command(protected / "nowhere")
