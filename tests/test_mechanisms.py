"""The mechanisms: the noise they draw, the sensitivity they assume, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from support_privacy import CPU, ENCODER, config
from torch import Tensor, nn

import client.mechanisms
from client.loss import normalised_moments
from client.mechanisms import (
    calibrate_mask_noise,
    calibrate_moments,
    check_encoder,
    noisy_values,
    release_moments,
)
from client.noise import discrete_gaussian
from common.accounting import gaussian_sigma
from common.downlink import initial_state
from common.errors import PrivacyError
from common.sections import PrivacyConfig
from common.state import sigma

pytestmark = pytest.mark.usefixtures("one_thread")


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
    torch.testing.assert_close(exact.mean[0], nn.functional.normalize(whole).mean(0))
    torch.testing.assert_close(exact.variance[0], nn.functional.normalize(whole**2).mean(0))


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
