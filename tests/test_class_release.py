"""The joint release of all classes: sensitivity, sums, and what is read from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from client.class_release import (
    calibrate_classes,
    class_moments,
    image_vectors,
    release_classes,
)
from client.weighted import Scales, public_scales, weighted_moments
from common.encoders import load_encoder
from common.errors import PrivacyError
from common.sections import PrivacyConfig

SCALES = Scales(2.0, (1.0, 4.0), (0.5, 2.0), (2, 2))
ZERO = [0.0, 0, 0, 0]
LEFT = [1e6, 0, 0, 0]
RIGHT = [0.0, 0, 0, 1e6]


def features(*rows):
    return [torch.tensor(rows)[:, :2, None, None], torch.tensor(rows)[:, 2:, None, None]]


def vectors(*rows):
    return image_vectors(features(*rows), SCALES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((LEFT, 0), (RIGHT, 0)),
        ((LEFT, 0), (LEFT, 1)),
        ((ZERO, 0), (LEFT, 0)),
        ((ZERO, 0), (ZERO, 1)),
        ((LEFT, 1), (RIGHT, 0)),
    ],
    ids=["same class", "other class", "no features", "no features, other class", "both"],
)
def test_worst_neighbours_are_within_the_sensitivity_and_reach_it(one, other):
    n = 50
    (sensitivity,) = calibrate_classes(PrivacyConfig(), n).sensitivities
    sums = []
    for row, label in (one, other):
        block = torch.zeros(3, 9, dtype=torch.float64)
        block[label] = vectors(row)[0]
        sums.append(block / n)
    distance = float((sums[0] - sums[1]).norm())
    assert distance <= sensitivity
    assert distance >= 0.999 * sensitivity


def test_random_neighbours_are_within_the_sensitivity():
    g = torch.Generator().manual_seed(1)
    u = vectors(*(10 ** (4 * torch.randn(500, 4, generator=g))).tolist())
    assert float(u.norm(dim=1).max()) <= 1
    assert float(torch.cdist(u, u).max()) <= math.sqrt(2)


def released(rows, labels, epsilon, classes=3):
    """The release of images of four features, and its sigma."""
    calibration = calibrate_classes(PrivacyConfig(epsilon=epsilon), len(rows))
    made = release_classes([(features(*rows), labels)], classes, calibration, SCALES)
    return made, calibration.sigmas[0]


def test_moments_of_the_same_images_are_those_of_the_generated_side():
    g = torch.Generator().manual_seed(2)
    n = 4000
    rows, labels = 3 * torch.rand(n, 4, generator=g) ** 4, torch.arange(n) % 2 * 2
    moments = class_moments(*released(rows.tolist(), labels, 1e4), SCALES)
    assert moments.classes == (0, 2)
    by_class = torch.cat([rows[labels == label] for label in (0, 2)])
    expected = weighted_moments(features(*by_class.tolist()), SCALES, 2)
    torch.testing.assert_close(moments.mean, expected[0], rtol=0.01, atol=0.005)
    torch.testing.assert_close(moments.variance, expected[1], rtol=0.02, atol=0.01)
    # And not those of unweighted images, which differ here.
    plain = torch.stack([rows[labels == label].mean(0) for label in (0, 2)])
    assert not torch.allclose(moments.mean, plain, rtol=0.05)


def test_weighted_moments_are_weighted_and_unbiased():
    rows = torch.rand(6, 4, generator=torch.Generator().manual_seed(3)).double()
    first, second = SCALES.of_features()
    constant = torch.full((6, 1), SCALES.constant).double()
    norm = torch.cat([constant, rows * first, rows.square() * second], dim=1).norm(dim=1)
    mean, variance = weighted_moments(features(*rows.tolist()), SCALES, 2)
    for group in range(2):
        mine = slice(3 * group, 3 * group + 3)
        weights = (1 / norm[mine] / (1 / norm[mine]).sum())[:, None]
        expected = (weights * rows[mine]).sum(0)
        spread = (weights * (rows[mine] - expected).square()).sum(0) / (1 - weights.square().sum())
        torch.testing.assert_close(mean[group].double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variance[group].double(), spread, rtol=1e-4, atol=1e-5)


def test_gradients_of_weighted_moments_take_the_weights_for_constants():
    rows = torch.rand(4, 4, generator=torch.Generator().manual_seed(4), requires_grad=True)
    mean, _ = weighted_moments([rows[:, :2, None, None], rows[:, 2:, None, None]], SCALES, 1)
    mean.sum().backward()
    assert rows.grad is not None
    # Each image's gradient is its weight, the same in all its features.
    torch.testing.assert_close(rows.grad, rows.grad[:, :1].expand(4, 4))
    torch.testing.assert_close(rows.grad[:, 0].sum(), torch.tensor(1.0))


def test_every_class_carries_noise_of_the_right_size():
    rows, labels = torch.rand(500, 4).tolist(), torch.zeros(500, dtype=torch.int64)
    drawn, sigmas = zip(*(released(rows, labels, 10.0) for _ in range(100)), strict=True)
    spread = np.stack(drawn).std(0)
    assert spread == pytest.approx(np.full((3, 9), sigmas[0]), rel=0.35)


def test_classes_are_those_that_rise_above_the_noise():
    sigma, scales = 0.01, Scales(2.0, (1.0,), (1.0,), (50,))
    blocks = np.zeros((4, scales.length))
    blocks[0, :2] = 0.3, 0.4
    # A first coordinate above its noise, in a block that is not; and the other way round.
    blocks[1, 0] = 6.5 * sigma
    blocks[2, 1:] = 0.3
    assert class_moments(blocks, sigma, scales).classes == (0,)
    blocks[1, 1] = 0.3
    assert class_moments(blocks, sigma, scales).classes == (0, 1)
    with pytest.raises(PrivacyError, match=r"larger privacy\.epsilon, a smaller encoder\.pool"):
        class_moments(np.zeros((4, scales.length)), sigma, scales)


def test_what_would_break_the_sensitivity_is_refused():
    labels = torch.tensor([0, 1])
    for rows, says in (
        ((ZERO, [-1e-3, 0, 0, 0]), "negative"),
        ((ZERO, [math.nan, 0, 0, 0]), "not finite"),
        ((ZERO, [math.inf, 0, 0, 0]), "not finite"),
    ):
        with pytest.raises(PrivacyError, match=says):
            released(rows, labels, 10.0)
    for wrong in (torch.tensor([0, 3]), torch.tensor([0, -1]), torch.tensor([0])):
        with pytest.raises(PrivacyError, match="label"):
            released((ZERO, LEFT), wrong, 10.0)
    with pytest.raises(PrivacyError, match="below 1/n"):
        calibrate_classes(PrivacyConfig(delta=0.01), 100)
    calibration = calibrate_classes(PrivacyConfig(), 3)
    with pytest.raises(PrivacyError, match="calibrated for 3 images"):
        release_classes([(features(ZERO, LEFT), labels)], 3, calibration, SCALES)


def test_scales_are_powers_of_two_and_the_same_each_time():
    encoder = load_encoder("small", None, 4)
    one, two = (public_scales(encoder, (1, 16, 16)) for _ in range(2))
    assert one == two
    assert len(one.first) == len(one.second) == len(one.sizes) == 4
    assert all(math.log2(scale).is_integer() for scale in (one.constant, *one.first, *one.second))
    assert Scales.from_tensors(one.to_tensors()) == one
