"""Exact Gaussian accounting against published constants and against dp-accounting."""

import math

import numpy as np
import pytest
from dp_accounting import get_epsilon_gaussian, get_sigma_gaussian
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from common.accounting import compose, gaussian_delta, gaussian_epsilon, gaussian_sigma


@pytest.mark.parametrize(
    ("epsilon", "sigma"), [(0.2, 16.30), (1, 3.731), (2, 1.994), (5, 0.892), (10, 0.500)]
)
def test_known_calibrations(epsilon: float, sigma: float) -> None:
    assert gaussian_sigma(epsilon, 1e-5) == pytest.approx(sigma, abs=5e-4 if sigma < 10 else 5e-3)


def test_delta_at_epsilon_zero_is_the_total_variation() -> None:
    assert gaussian_delta(0.0, 1.0) == pytest.approx(2 * norm.cdf(0.5) - 1)
    assert gaussian_delta(3.0, 0.0) == 0
    assert gaussian_delta(3.0, math.inf) == 1


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e4), st.floats(1e-12, 0.5))
def test_calibration_against_dp_accounting(epsilon: float, delta: float) -> None:
    sigma = gaussian_sigma(epsilon, delta)
    assert gaussian_delta(epsilon, 1 / sigma) <= delta
    # dp-accounting stops within 1e-3 % of its root.
    assert sigma == pytest.approx(get_sigma_gaussian(epsilon, delta), rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-12, 0.5))
def test_epsilon_against_dp_accounting(mu: float, delta: float) -> None:
    expected = get_epsilon_gaussian(1 / mu, delta)
    assert gaussian_epsilon(mu, delta) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-2, 1e3), st.floats(1e-10, 1e-3))
def test_calibration_and_epsilon_are_inverse(epsilon: float, delta: float) -> None:
    assert gaussian_epsilon(1 / gaussian_sigma(epsilon, delta), delta) == pytest.approx(
        epsilon, rel=1e-6
    )


def test_composition_against_a_privacy_loss_distribution() -> None:
    """Forty rounds at noise 4: numerically composed, and by the root of the sum of squares."""
    one = privacy_loss_distribution.from_gaussian_mechanism(4.0, value_discretization_interval=1e-4)
    numerical = one.self_compose(40).get_epsilon_for_delta(1e-5)
    assert gaussian_epsilon(compose([1 / 4] * 40), 1e-5) == pytest.approx(numerical, rel=1e-3)


def test_the_published_mask_noise_claim_needs_huge_noise() -> None:
    """(9.8, 1e-5) for one client over 150 rounds, theta in [0, 1]^d, d = 3.5 million."""
    d, rounds = 3_543_616, 150
    assert math.sqrt(d * rounds) * gaussian_sigma(9.8, 1e-5) == pytest.approx(11_700, rel=0.01)
    one = 1 / gaussian_sigma(9.8, 1e-5)
    said = [gaussian_epsilon(compose([one] * t), 1e-5) for t in (1, 10, 40, 150, 500)]
    assert said == pytest.approx([9.8, 45.1, 130, 392, 1155], rel=0.005)


def test_edges() -> None:
    assert gaussian_epsilon(math.inf, 1e-5) == math.inf
    assert gaussian_epsilon(1e-9, 1e-5) == 0
    assert compose([]) == 0
    assert compose([3.0, 4.0]) == 5
    assert compose([1.0, math.inf]) == math.inf


def test_the_discrete_gaussian_has_the_same_profile() -> None:
    """At 2**10 grid steps a standard deviation; the mechanisms use 2**24, where less is lost."""
    steps, mu = 1 << 10, 1 / gaussian_sigma(1.0, 1e-5)
    shift = round(mu * steps)
    x = np.arange(-40 * steps, 40 * steps)
    p = np.exp(-(x.astype(float) ** 2) / (2 * steps**2))
    q = np.exp(-((x - shift).astype(float) ** 2) / (2 * steps**2))
    exact = np.maximum(q - math.e * p, 0).sum() / p.sum()
    assert exact == pytest.approx(gaussian_delta(1.0, shift / steps), rel=1e-5)
