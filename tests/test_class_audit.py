"""The audits of the release of classes pass for what is shipped, and broken builds fail them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import client.class_release
from benchmarks.audit import LABELLED, TINY, non_interference, reaches_the_wire
from benchmarks.class_attack import distinguish_classes
from client.class_release import Released, release_classes
from client.loss import Moments
from client.mechanisms import Calibration
from client.noise import discrete_gaussian
from client.privacy_guard import Guard
from client.weighted import Scales
from common.config import RunConfig, parse_config
from common.sections import PrivacyConfig

CONFIDENCE = 1 - 1e-6
"""An intact build fails a test once in a million runs."""

Batches = Iterable[tuple[Sequence[Tensor], Tensor]]
pytestmark = pytest.mark.usefixtures("one_thread")


def claim(epsilon: float) -> PrivacyConfig:
    return PrivacyConfig(mechanism="moments", epsilon=epsilon)


def config(epsilon: float = 10.0) -> RunConfig:
    changes = ["privacy.mechanism=moments", f"privacy.epsilon={epsilon}"]
    return parse_config(TINY, [*LABELLED, *changes])


def scaled(by: float) -> Any:
    """A build whose noise is `by` times what the claim needs."""

    def mechanism(batches: Batches, classes: int, calibration: Calibration, scales: Scales) -> Any:
        sigmas = tuple(by * sigma for sigma in calibration.sigmas)
        return release_classes(batches, classes, replace(calibration, sigmas=sigmas), scales)

    return mechanism


def noisy(keep: Any) -> Any:
    """A build that adds noise to those classes alone that `keep` says, given all labels."""

    def mechanism(batches: Batches, classes: int, calibration: Calibration, scales: Scales) -> Any:
        content = list(batches)
        tiny = replace(calibration, sigmas=(1e-9 * calibration.sigmas[0],))
        quiet = release_classes(content, classes, tiny, scales).round(7)
        made: Released = release_classes(content, classes, calibration, scales)
        for label in range(classes):
            if not keep(label, content[0][1]):
                made[label] = quiet[label]
        return made

    return mechanism


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_the_release_passes(epsilon: float) -> None:
    for found in distinguish_classes(release_classes, claim(epsilon), 150, confidence=CONFIDENCE):
        assert found.passed, found
        assert found.figures["epsilon_low"] <= epsilon <= found.figures["epsilon_high"]


@pytest.mark.parametrize("neighbours", ["same class", "other class", "no features"])
def test_half_the_noise_fails(neighbours: str) -> None:
    found = distinguish_classes(scaled(0.5), claim(10.0), 250, [neighbours], CONFIDENCE)
    assert not any(finding.passed for finding in found)


def test_a_sensitivity_without_the_label_fails() -> None:
    """1 / n is what replacing an image's vector by zero moves: noise for that is too little."""
    (found,) = distinguish_classes(scaled(0.5**0.5), claim(10.0), 600, ["other class"])
    assert not found.passed, found


@pytest.mark.parametrize(
    "keep",
    [
        lambda label, _: label == 0,
        lambda label, _: label != 0,
        lambda label, _: label != 1,
        lambda label, _: label != 2,
        lambda label, labels: bool((labels == label).any()),
    ],
    ids=[
        "only on one class",
        "missing in a full one",
        "missing in one",
        "missing in an empty one",
        "where images are",
    ],
)
def test_noise_that_is_not_on_all_classes_fails(keep: Any) -> None:
    (found,) = distinguish_classes(noisy(keep), claim(10.0), 100, ["other class"], CONFIDENCE)
    assert not found.passed, found


def test_other_images_behind_one_release_change_no_byte() -> None:
    found = non_interference(config())
    assert found.passed, found


def test_a_guard_that_takes_the_classes_from_the_images_fails() -> None:
    class Telling(Guard):
        def moments(self, config: RunConfig, *rest: Any) -> Moments:
            release = super().moments(config, *rest)
            images = rest[1]
            first = images.classes[0]
            return replace(release, classes=(first, *release.classes[1:]))

    assert not non_interference(config(), Telling).passed


def test_noise_reaches_the_wire_unless_it_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reaches_the_wire(config()).passed

    def silence(count: int) -> np.ndarray:
        return np.zeros_like(discrete_gaussian(count))

    monkeypatch.setattr(client.class_release, "discrete_gaussian", silence)
    assert not reaches_the_wire(config()).passed
