"""The kernel distance: known answers, no bias, and the error that it states."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from common.errors import DataError
from common.quality.metrics import kernel_distance, kernel_distance_in_blocks

Array = np.ndarray


def naive_kernel_distance(real: Array, fake: Array) -> float:
    def mean(pairs: list[tuple[Array, Array]]) -> float:
        return float(np.mean([(float(a @ b) / len(a) + 1) ** 3 for a, b in pairs]))

    within = mean(list(itertools.permutations(real, 2)))
    within += mean(list(itertools.permutations(fake, 2)))
    return within - 2 * mean(list(itertools.product(real, fake)))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 3), (9, 14)])
def test_the_kernel_distance_agrees_with_a_double_loop(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    real, fake = rng.normal(size=(n, 4)), rng.normal(size=(m, 4)) + 0.5
    assert kernel_distance(real, fake) == pytest.approx(naive_kernel_distance(real, fake))


def test_the_kernel_distance_where_it_is_known_in_closed_form() -> None:
    # One point twice on each side: k(a, a) + k(b, b) - 2 k(a, b) with D = 1.
    zeros, ones = np.zeros((2, 1)), np.ones((3, 1))
    assert kernel_distance(zeros, ones) == pytest.approx(1 + 8 - 2)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_kernel_distance_is_unbiased(n: int) -> None:
    """Over all ways to deal one pool of points to the two sides, its mean is exactly 0."""
    pool = np.random.default_rng(0).normal(size=(6, 3))
    values = []
    for chosen in itertools.combinations(range(6), n):
        rest = [i for i in range(6) if i not in chosen]
        values.append(kernel_distance(pool[list(chosen)], pool[rest]))
    assert max(values) > 0.1
    assert np.mean(values) == pytest.approx(0, abs=1e-12)


def test_kernel_distances_in_blocks_state_their_own_error() -> None:
    rng = np.random.default_rng(1)
    draws = [
        kernel_distance_in_blocks(rng.normal(size=(60, 3)), rng.normal(size=(80, 3)), seed)
        for seed in range(300)
    ]
    means = np.array([draw.mean for draw in draws])
    spread = means.std(ddof=1)
    assert abs(means.mean()) < 4 * spread / np.sqrt(len(means))
    squares = np.mean([draw.standard_error**2 for draw in draws])
    assert np.sqrt(squares) == pytest.approx(spread, rel=0.25)


def test_blocks_do_not_hang_on_the_order_of_classes() -> None:
    rng = np.random.default_rng(2)
    by_class = np.concatenate([rng.normal(size=(100, 3)) + 9 * which for which in range(5)])
    found = kernel_distance_in_blocks(by_class, by_class[::-1], 1)
    assert abs(found.mean) < 4 * found.standard_error
    assert kernel_distance_in_blocks(by_class, by_class[::-1], 1) == found
    with pytest.raises(DataError, match="at least 4 images"):
        kernel_distance_in_blocks(by_class, by_class[:3], 1)
