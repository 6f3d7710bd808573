"""The average that models are exported from: its weights, its bounds, its checkpoint."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import RunConfig, parse_config
from common.state import PROB_ONE, GlobalState, sigma
from server.average import StateAverage

D = 64


def config_of(share: float) -> RunConfig:
    return parse_config("", [f"output.average={share}"])


def masked(round_: int, seed: int) -> GlobalState:
    scores = np.random.default_rng([seed, round_]).integers(-20000, 20000, D)
    return GlobalState(round_, scores.astype(np.int16))


def weighted(round_: int, seed: int) -> GlobalState:
    values = np.random.default_rng([seed, round_]).normal(size=D)
    return GlobalState(round_, values.astype(np.float32))


@settings(deadline=None)
@given(st.integers(1, 40), st.sampled_from([0.05, 0.1, 0.5, 1.0]), st.integers(0, 2**32))
def test_it_is_the_mean_with_power_weights(rounds: int, share: float, seed: int) -> None:
    average = StateAverage(config_of(share), masked(0, seed))
    for round_ in range(1, rounds + 1):
        average.add(masked(round_, seed))
    # w_t = kept_{t+1} ... kept_T (1 - kept_t), and kept_1 = 0: the initial state has no say.
    kept = [(1 - 1 / t) ** (1 / share) for t in range(1, rounds + 1)]
    weights = [(1 - kept[t]) * np.prod(kept[t + 1 :]) for t in range(rounds)]
    assert sum(weights) == pytest.approx(1)
    thetas = [sigma(masked(t, seed).scores) / PROB_ONE for t in range(1, rounds + 1)]
    expected = np.average(thetas, axis=0, weights=weights)
    given_ = sigma(average.state.scores) / PROB_ONE
    assert average.state.round == rounds
    # A step of the score grid moves theta by at most 1 / (4 * 2048).
    np.testing.assert_allclose(given_, expected, atol=1e-4)


def test_without_a_share_it_is_the_last_state() -> None:
    average = StateAverage(config_of(0), masked(0, 1))
    assert average.state.digest() == masked(0, 1).digest()
    average.add(masked(1, 1))
    assert average.state.digest() == masked(1, 1).digest()
    assert list(average.snapshot()) == ["taught"]


@pytest.mark.parametrize("make", [masked, weighted])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_checkpoint_goes_on_bit_for_bit(make: type, share: float) -> None:
    config = config_of(share)
    whole, resumed = (StateAverage(config, make(0, 7)) for _ in range(2))
    for round_ in range(1, 12):
        whole.add(make(round_, 7))
        if round_ < 6:
            resumed.add(make(round_, 7))
    arrays = {name: array.copy() for name, array in resumed.snapshot().items()}
    resumed = StateAverage(config, make(0, 7))
    resumed.restore(make(5, 7), arrays)
    for round_ in range(6, 12):
        resumed.add(make(round_, 7))
    assert resumed.state.digest() == whole.state.digest()
    assert (whole.state.digest() == make(11, 7).digest()) == (share == 0)


def test_classes_that_no_client_taught() -> None:
    average = StateAverage(config_of(0.1), masked(0, 7))
    # Before the first round, and where clients do not say, nothing is known.
    assert average.source.unseen == ()
    average.add(masked(1, 7), {0, 3})
    average.add(masked(2, 7), {3, 9})
    assert average.source.unseen == (1, 2, 4, 5, 6, 7, 8)
    resumed = StateAverage(config_of(0.1), masked(0, 7))
    resumed.restore(masked(2, 7), average.snapshot())
    assert resumed.source.unseen == average.source.unseen
    ignoring = StateAverage(parse_config("", ["data.labels=ignore"]), masked(0, 7))
    assert ignoring.source.unseen == () and "taught" not in ignoring.snapshot()


def test_weights_are_averaged_as_they_are() -> None:
    average = StateAverage(config_of(1.0), weighted(0, 3))
    for round_ in range(1, 5):
        average.add(weighted(round_, 3))
    expected = np.mean([weighted(t, 3).weights for t in range(1, 5)], axis=0)
    np.testing.assert_allclose(average.state.weights, expected, rtol=1e-5, atol=1e-6)


def test_what_was_exported_does_not_change_later() -> None:
    average = StateAverage(config_of(0.5), weighted(0, 3))
    average.add(weighted(1, 3))
    state = average.state
    digest = state.digest()
    average.add(weighted(2, 3))
    assert state.digest() == digest
