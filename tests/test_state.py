"""Fixed-point state: tables against floats, moves against their equations, known answers."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import seeding, state
from common.errors import PayloadError
from common.state import LAMBDA_ONE, PROB_ONE, SCORE_UNIT, GlobalState

KNOWN_WORDS = [12920278576764877284, 11898384186810325098]
KNOWN_BITS = [1, 0, 0, 1, 0, 1, 0, 0]
KNOWN_INITIAL = "1c354ae3a9fe03b3ffcdde8146dbe4891af66900c5fd75fb1aba6bcac7667aaf"

score_vectors = st.lists(st.integers(-32768, 32767), min_size=1, max_size=50).map(
    lambda values: np.array(values, dtype=np.int16)
)


def test_tables_are_the_rounded_functions() -> None:
    s = np.arange(-32768, 32768) / SCORE_UNIT
    sigma = np.clip(np.round(PROB_ONE / (1 + np.exp(-s))), 1, PROB_ONE - 1)
    assert np.array_equal(state.sigma_table(), sigma)
    p = np.arange(1, PROB_ONE) / PROB_ONE
    assert np.array_equal(state.logit_table()[1:], np.round(SCORE_UNIT * np.log(p / (1 - p))))


def test_known_answers() -> None:
    """What every platform must build; a change here is a change of protocol."""
    assert state.tables_digest().hex() == (
        "5fd215cb9b9db50141e0d6c822dea61984afd996722f464f8f4bbd6ae8ac5f55"
    )
    assert seeding.words(2, 1, "known", 3, "a").tolist() == KNOWN_WORDS
    assert seeding.bits(8, 1, "known").tolist() == KNOWN_BITS
    scores = state.initial_scores(1000, 7)
    assert hashlib.sha256(scores.astype("<i2").tobytes()).hexdigest() == KNOWN_INITIAL


def test_initial_scores_are_standard_normal() -> None:
    scores = state.initial_scores(200_000, 1) / SCORE_UNIT
    assert abs(scores.mean()) < 0.01
    assert abs(scores.std() - 1) < 0.01
    assert abs((np.abs(scores) < 1).mean() - 0.6827) < 0.01


def test_streams_differ_by_every_part_of_their_name() -> None:
    names = [(1, "a"), (2, "a"), (1, "b"), (1, "a", 0), (1, "a", "0"), (1, "a", 0, 0)]
    streams = {tuple(seeding.words(2, seed, *rest).tolist()) for seed, *rest in names}  # type: ignore[arg-type]
    assert len(streams) == len(names)


@given(score_vectors, st.integers(0, LAMBDA_ONE))
def test_score_move_is_madas_equation(scores: np.ndarray, lam: int) -> None:
    target = np.random.default_rng(lam).integers(655, 64882, scores.size).astype(np.uint16)
    moved = state.move_in_score_space(scores, target, lam)
    s = scores.astype(float)
    expected = s + lam / LAMBDA_ONE * (state.logit(target).astype(float) - s)
    assert np.abs(moved - expected).max() <= 0.5 + 1e-9


@given(score_vectors, st.integers(0, LAMBDA_ONE))
def test_probability_move_is_madas_equation(scores: np.ndarray, lam: int) -> None:
    target = np.random.default_rng(lam).integers(655, 64882, scores.size).astype(np.uint16)
    moved = state.move_in_probability_space(scores, target, lam)
    theta = state.sigma(scores) / PROB_ONE
    expected = theta + lam / LAMBDA_ONE * (target / PROB_ONE - theta)
    # Rounding to the grid of probabilities, and back through the grid of scores.
    slack = 1.5 / PROB_ONE + expected * (1 - expected) / SCORE_UNIT
    assert (np.abs(state.sigma(moved) / PROB_ONE - expected) <= slack).all()


@pytest.mark.parametrize("move", [state.move_in_score_space, state.move_in_probability_space])
def test_lambda_at_its_ends(move: object) -> None:
    assert callable(move)
    scores = np.arange(-32768, 32768, 7).astype(np.int16)
    target = np.full(scores.size, 20000, dtype=np.uint16)
    assert np.array_equal(move(scores, target, 0), scores)
    assert np.array_equal(move(scores, target, LAMBDA_ONE), state.logit(target))
    with pytest.raises(ValueError, match="lambda"):
        move(scores, target, LAMBDA_ONE + 1)


@given(score_vectors, st.integers(0, 1000))
def test_keyframes_round_trip(scores: np.ndarray, round_: int) -> None:
    one = GlobalState(round_, scores)
    other = GlobalState.from_bytes(round_, one.to_bytes(), scores.size, "int16")
    assert other.digest() == one.digest()
    assert GlobalState(round_ + 1, scores).digest() != one.digest()
    with pytest.raises(PayloadError):
        GlobalState.from_bytes(round_, one.to_bytes() + b"\0", scores.size, "int16")


def test_entropy() -> None:
    scores = np.array([0, 2048, -32768], dtype=np.int16)
    theta = state.sigma(scores) / PROB_ONE
    expected = -(theta * np.log2(theta) + (1 - theta) * np.log2(1 - theta)).mean()
    assert state.entropy_bits(scores) == pytest.approx(expected, rel=1e-12)
