"""The joint release of all classes: sensitivity, sums, and what is read from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from client.class_release import (
    Scales,
    calibrate_classes,
    class_moments,
    image_vectors,
    public_scales,
    release_classes,
    weighted_moments,
)
from common.config import PrivacyConfig
from common.encoders import load_encoder
from common.errors import PrivacyError

SCALES = Scales(2.0, torch.tensor([1.0, 1, 4, 4]).double(), torch.tensor([0.5, 0.5, 2, 2]).double())
ZERO = [0.0, 0, 0, 0]
LEFT = [1e6, 0, 0, 0]
RIGHT = [0.0, 0, 0, 1e6]


def features(*rows):
    return [torch.tensor(rows)[:, :2, None, None], torch.tensor(rows)[:, 2:, None, None]]


def vectors(*rows):
    return torch.cat(image_vectors(features(*rows), SCALES), dim=1)


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
    sensitivity, _ = calibrate_classes(PrivacyConfig(), n)
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


def test_moments_of_the_same_images_are_those_of_the_generated_side():
    g = torch.Generator().manual_seed(2)
    n = 4000
    rows, labels = 3 * torch.rand(n, 4, generator=g) ** 4, torch.arange(n) % 2 * 2
    _, sigma = calibrate_classes(PrivacyConfig(epsilon=1e4), n)
    released = release_classes([(features(*rows.tolist()), labels)], 3, n, sigma, SCALES)
    moments = class_moments(released, sigma, SCALES)
    assert set(moments) == {0, 2}
    for label, (mean, variance) in moments.items():
        mine = rows[labels == label]
        expected = weighted_moments(features(*mine.tolist()), SCALES)
        assert torch.allclose(mean, expected[0], rtol=0.01, atol=0.005)
        assert torch.allclose(variance, expected[1], rtol=0.02, atol=0.01)
        # And not those of unweighted images, which differ here.
        assert not torch.allclose(mean, mine.mean(0), rtol=0.05)


def test_every_class_carries_noise_of_the_right_size():
    n = 500
    _, sigma = calibrate_classes(PrivacyConfig(), n)
    rows = torch.rand(n, 4).tolist()
    drawn = [
        release_classes([(features(*rows), torch.zeros(n, dtype=torch.int64))], 3, n, sigma, SCALES)
        for _ in range(100)
    ]
    spread = np.stack(drawn).std(0)
    assert spread == pytest.approx(np.full((3, 9), sigma), rel=0.35)


def test_labels_must_fit():
    with pytest.raises(PrivacyError, match="label"):
        release_classes([(features(ZERO), torch.tensor([3]))], 3, 1, 1.0, SCALES)


def test_scales_are_powers_of_two_and_the_same_each_time():
    encoder = load_encoder("small", None, 4)
    one, two = (public_scales(encoder, (1, 16, 16)) for _ in range(2))
    assert one.constant == two.constant
    assert torch.equal(one.first, two.first)
    assert bool((torch.log2(one.second) % 1 == 0).all())
