"""The audits pass for what is shipped, and a deliberately broken build fails them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import client.mechanisms
from benchmarks.attack import (
    Mechanism,
    clopper_pearson,
    distinguish,
    epsilon_from_guesses,
    one_run,
)
from benchmarks.audit import TINY, UNLABELLED, membership, non_interference, reaches_the_wire
from client.loss import Moments, real_moments
from client.mechanisms import Calibration, release_moments
from client.noise import discrete_gaussian
from client.privacy_guard import Guard
from common.config import RunConfig, parse_config
from common.sections import PrivacyConfig

CONFIDENCE = 1 - 1e-6
"""An intact build fails a test once in a million runs."""
CLAIMS = (1.0, 10.0)

pytestmark = pytest.mark.usefixtures("one_thread")


def claim(epsilon: float) -> PrivacyConfig:
    return PrivacyConfig(mechanism="moments", epsilon=epsilon)


def config(mechanism: str = "moments", epsilon: float = 1.0) -> RunConfig:
    changes = [f"privacy.mechanism={mechanism}", f"privacy.epsilon={epsilon}"]
    return parse_config(TINY, [*(UNLABELLED if mechanism == "moments" else ()), *changes])


def scaled(by: float) -> Mechanism:
    """A build whose noise is `by` times what the claim needs."""

    def mechanism(batches: Iterable[Sequence[Tensor]], calibration: Calibration) -> Moments:
        sigmas = tuple(by * sigma for sigma in calibration.sigmas)
        return release_moments(batches, replace(calibration, sigmas=sigmas))

    return mechanism


NOISE_DROPPED, SENSITIVITY_HALVED = scaled(1e-6), scaled(0.5)


@pytest.mark.parametrize("epsilon", CLAIMS)
def test_the_release_passes(epsilon: float) -> None:
    for found in (
        distinguish(release_moments, claim(epsilon), 300, confidence=CONFIDENCE),
        one_run(release_moments, claim(epsilon), 1000, confidence=CONFIDENCE),
    ):
        assert found.passed, found
        assert found.figures["claimed"] == epsilon


@pytest.mark.parametrize("epsilon", CLAIMS)
def test_a_build_without_noise_fails(epsilon: float) -> None:
    assert not distinguish(NOISE_DROPPED, claim(epsilon), 100, confidence=CONFIDENCE).passed
    assert not one_run(NOISE_DROPPED, claim(epsilon), 500, confidence=CONFIDENCE).passed


def test_a_build_with_half_the_sensitivity_fails() -> None:
    assert not distinguish(SENSITIVITY_HALVED, claim(10.0), 300, confidence=CONFIDENCE).passed
    assert not one_run(SENSITIVITY_HALVED, claim(10.0), 1000, confidence=CONFIDENCE).passed
    # At epsilon 1 a coin says little, so it takes more of them.
    assert not one_run(SENSITIVITY_HALVED, claim(1.0), 5000).passed


def test_the_test_is_two_sided() -> None:
    """A build that promises less than it keeps is noticed too."""
    assert not distinguish(scaled(3.0), claim(10.0), 300, confidence=CONFIDENCE).passed


def test_other_images_behind_one_release_change_no_byte() -> None:
    found = non_interference(config())
    assert found.passed
    assert found.figures["upload_bytes"] > 100


def test_a_guard_that_leaks_raw_moments_fails() -> None:
    class Leaking(Guard):
        def moments(self, config: RunConfig, *rest: Any) -> Moments:
            release = super().moments(config, *rest)
            encoder, images, device = rest
            raw = real_moments(encoder, images.batches(), device)
            return replace(release, mean=release.mean + 1e-3 * raw.mean)

    assert not non_interference(config(), Leaking).passed


@pytest.mark.parametrize("mechanism", ["moments", "mask-noise"])
def test_noise_reaches_the_wire_unless_it_is_dropped(
    mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reaches_the_wire(config(mechanism)).passed

    def silence(count: int) -> np.ndarray:
        return np.zeros_like(discrete_gaussian(count))

    monkeypatch.setattr(client.mechanisms, "discrete_gaussian", silence)
    assert not reaches_the_wire(config(mechanism)).passed


def test_membership() -> None:
    run = config(epsilon=1.0)
    found = membership(run, CONFIDENCE)
    assert found.passed, found
    # The raw moments of a hundred images give their members away; the release does not.
    assert found.figures["auc_raw_moments"] > 0.7
    assert found.figures["auc_release"] < 0.7


def test_clopper_pearson() -> None:
    low, high = clopper_pearson(0, 20, 0.95)
    assert (low, high) == (0, pytest.approx(1 - 0.025 ** (1 / 20)))
    low, high = clopper_pearson(20, 20, 0.95)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 20)), 1)
    # Published: 10 of 100 at 95 %.
    assert clopper_pearson(10, 100, 0.95) == pytest.approx((0.0490, 0.1762), abs=1e-4)


def test_the_one_run_bound_has_a_closed_form_where_all_guesses_are_right() -> None:
    q = 0.05 ** (1 / 100)
    assert epsilon_from_guesses(100, 100, 100, 0.0, 0.05) == pytest.approx(math.log(q / (1 - q)))
    assert epsilon_from_guesses(100, 100, 50, 0.0, 0.05) == 0
    assert epsilon_from_guesses(100, 100, 0, 1e-5, 0.05) == 0
    assert epsilon_from_guesses(100, 100, 95, 1e-3, 0.05) < epsilon_from_guesses(
        100, 100, 95, 0.0, 0.05
    )
