"""Distances class by class and client by client."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.data import load_images, open_source, partition
from common.errors import DataError
from common.quality import Evaluator, evaluator_of
from common.quality.groups import class_distances, client_distances
from common.quality.metrics import frechet_from_moments, moments
from common.sections import DataConfig

Array = np.ndarray


def frechet(a: Array, b: Array) -> float:
    return frechet_from_moments(*moments(a), *moments(b))


def labelled(n: int, shares: list[float], shift: float, seed: int) -> tuple[Array, Array]:
    """Features of three dimensions whose classes lie apart."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), n, p=shares)
    return rng.normal(size=(n, 3)) + 4 * labels[:, None] + shift, labels


def test_distances_of_classes_are_those_of_the_subsets() -> None:
    real, labels = labelled(300, [0.2, 0.5, 0.3], 0.0, 1)
    fake, intended = labelled(200, [0.4, 0.2, 0.4], 0.3, 2)
    found = class_distances(real, labels, fake, intended)
    expected = [frechet(real[labels == c], fake[intended == c]) for c in range(3)]
    assert found.distances == pytest.approx(expected)
    assert found.fewest == np.bincount(intended).min()
    assert found.needed == 4
    wrong = class_distances(real, labels, fake, (intended + 1) % 3)
    assert wrong.distances is not None
    assert min(wrong.distances) > 10 * max(expected)


def test_classes_with_too_few_images_have_no_distances() -> None:
    real, labels = labelled(300, [0.2, 0.5, 0.3], 0.0, 1)
    keep = np.concatenate([np.flatnonzero(labels != 1), np.flatnonzero(labels == 1)[:3]])
    found = class_distances(real[keep], labels[keep], real, labels)
    assert (found.distances, found.fewest, found.needed) == (None, 3, 4)
    undrawn = class_distances(real, labels, real[labels != 1], labels[labels != 1])
    assert undrawn.distances is not None
    assert undrawn.distances[1] is None
    assert undrawn.distances[::2] == pytest.approx([0, 0], abs=1e-9)


def test_a_client_is_compared_with_its_own_classes_in_its_own_shares() -> None:
    real, labels = labelled(300, [1 / 3, 1 / 3, 1 / 3], 0.0, 1)
    fake, intended = labelled(200, [0.5, 0.3, 0.2], 0.3, 2)
    first = np.concatenate([np.flatnonzero(labels == 0)[:60], np.flatnonzero(labels == 2)[:20]])
    parts = [first, np.flatnonzero(labels == 1)]
    found = client_distances(real, labels, parts, fake, intended)

    own = intended != 1
    weights = np.where(intended[own] == 0, 0.75, 0.25) / np.bincount(intended)[intended[own]]
    mean = weights @ fake[own]
    apart = fake[own] - mean
    covariance = (weights[:, None] * apart).T @ apart / (1 - (weights**2).sum())
    expected = frechet_from_moments(*moments(real[first]), mean, covariance)
    assert found.distances == pytest.approx([expected, frechet(real[parts[1]], fake[~own])])
    (undrawn,) = client_distances(real, labels, [first], fake[own], intended[own]).distances or ()
    (missing,) = client_distances(
        real, labels, [first], fake[intended == 0], intended[intended == 0]
    ).distances or (None,)
    assert undrawn is not None
    assert missing is not None
    assert missing > undrawn


def test_one_client_with_everything_has_the_distance_of_all() -> None:
    real, labels = labelled(300, [0.2, 0.5, 0.3], 0.0, 1)
    repeated = np.concatenate([real, real]) + 0.3
    (distance,) = (
        client_distances(
            real, labels, [np.arange(300)], repeated, np.concatenate([labels, labels])
        ).distances
        or ()
    )
    assert distance == pytest.approx(frechet(real, repeated))


def test_an_evaluator_follows_a_partition() -> None:
    source = open_source("digits")
    assert source.labels is not None
    data = DataConfig(partition="shards", clients=3, shards_per_client=2)
    parts = partition(source.labels, data, seed=1)
    judge = evaluator_of(source, len(source), 16, 1, "small", parts=parts)
    images, labels = load_images(source, np.arange(len(source)), 16, 1), source.labels
    dimmed = (images.float() * 0.8).to(torch.uint8)
    quality = judge.evaluate(dimmed, labels)
    assert quality.by_client is not None
    assert quality.by_client.distances is not None
    assert quality.by_client.fewest == min(map(len, parts))
    shuffled = judge.evaluate(dimmed, np.random.default_rng(0).permutation(labels))
    assert shuffled.by_client is not None
    assert shuffled.by_client.distances is not None
    for own, mixed in zip(quality.by_client.distances, shuffled.by_client.distances, strict=True):
        assert own is not None
        assert mixed is not None
        assert own < mixed
    flat = quality.as_dict()
    assert flat["FD (small) by client, worst"] == max(flat["FD (small) by client"])
    assert flat["fewest_of_a_class"] < 353, "fewer than features"
    assert "FD (small) by class" not in flat
    assert judge.evaluate(dimmed[:50]).by_client is None

    half = evaluator_of(source, len(source) // 2, 16, 1, "small", parts=parts)
    few = half.evaluate(dimmed, labels).by_client
    assert few is not None
    assert (few.distances, few.needed) == (None, 353)
    assert abs(few.fewest - min(map(len, parts)) / 2) < 40


@pytest.mark.parametrize(
    ("labels", "parts", "message"),
    [
        (None, [np.arange(5)], "need clients and labelled images"),
        (np.zeros(20, np.int64), [], "need clients and labelled images"),
        (np.zeros(20, np.int64), [np.arange(5), np.arange(0)], "client 1 has no image"),
        (np.zeros(20, np.int64), [np.array([20])], "client 0 has images that are not"),
        (np.zeros(20, np.int64), [np.array([-1])], "client 0 has images that are not"),
        (np.zeros(19, np.int64), None, "one label from 0 each"),
        (np.full(20, -1), None, "one label from 0 each"),
    ],
)
def test_labels_and_partitions_that_do_not_fit(
    labels: Array | None, parts: list[Array] | None, message: str
) -> None:
    real = torch.zeros(20, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(DataError, match=message):
        Evaluator(real, labels, "small", parts=parts)
