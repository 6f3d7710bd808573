"""Keyframes, exact counts and the error-feedback broadcast."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.codecs import ERROR_FEEDBACK, EXACT, KEYFRAME, KEYFRAME_ENTROPY, step_units
from common.codecs.difference import MAX_LEVEL, step_table
from common.errors import PayloadError
from common.rpc.prism.v1 import federation_pb2 as pb
from common.state import Scores, initial_scores, logit, sigma

KNOWN = json.loads((Path(__file__).parent / "known" / "codecs.json").read_text())

STATES: dict[str, Callable[[int, np.random.Generator], NDArray[Any]]] = {
    "normal": lambda n, rng: rng.normal(0, 6000, n),
    "zero": lambda n, _: np.zeros(n),
    "limits": lambda n, rng: rng.choice([-32768, 32767], n),
    "few values": lambda n, rng: logit((rng.integers(1, 11, n) * 5957).astype(np.uint16)),
    "uniform": lambda n, rng: rng.integers(-32768, 32768, n),
}
SIZES = st.one_of(st.integers(1, 80), st.integers(81, 5000))
KINDS = st.sampled_from(sorted(STATES))
SEEDS = st.integers(0, 2**32)


def make_state(kind: str, n: int, rng: np.random.Generator) -> Scores:
    scores: Scores = np.clip(STATES[kind](n, rng), -32768, 32767).astype(np.int16)
    return scores


def test_wire_values_cover_the_enum() -> None:
    wires = {c.wire for c in (KEYFRAME, KEYFRAME_ENTROPY, EXACT, ERROR_FEEDBACK)}
    assert wires == set(pb.StateCodec.values()) - {pb.STATE_CODEC_UNSPECIFIED}


@settings(max_examples=60, deadline=None)
@given(n=SIZES, kind=KINDS, seed=SEEDS)
def test_keyframes_survive_the_round_trip(n: int, kind: str, seed: int) -> None:
    scores = make_state(kind, n, np.random.default_rng(seed))
    for codec in (KEYFRAME, KEYFRAME_ENTROPY):
        payload = codec.encode(scores)
        assert len(payload) <= codec.max_bytes(n)
        np.testing.assert_array_equal(codec.decode(payload, n), scores)


@settings(max_examples=60, deadline=None)
@given(n=SIZES, kind=KINDS, clients=st.sampled_from([1, 3, 10, 200]), seed=SEEDS)
def test_counts_survive_the_round_trip(n: int, kind: str, clients: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = make_state(kind, n, rng)
    for counts in (
        rng.binomial(clients, sigma(scores) / 65536),
        rng.integers(-clients, clients + 1, n),
        np.full(n, -clients),
    ):
        exact = counts.astype(np.int32)
        payload = EXACT.encode(exact, clients, scores)
        assert len(payload) <= EXACT.max_bytes(n, clients)
        np.testing.assert_array_equal(EXACT.decode(payload, clients, scores), exact)


@settings(max_examples=60, deadline=None)
@given(n=SIZES, kind=KINDS, step=st.sampled_from([1, 40, 500, 20_000]), seed=SEEDS)
def test_levels_survive_the_round_trip_and_stay_in_range(
    n: int, kind: str, step: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores, target = make_state(kind, n, rng), make_state("uniform", n, rng)
    pending = target.astype(np.int32) - scores
    levels = ERROR_FEEDBACK.quantise(pending, scores, step)
    payload = ERROR_FEEDBACK.encode(levels, scores)
    assert len(payload) <= ERROR_FEEDBACK.max_bytes(n)
    np.testing.assert_array_equal(ERROR_FEEDBACK.decode(payload, scores), levels)
    moved = scores + ERROR_FEEDBACK.dequantise(levels, scores, step)
    assert moved.min() >= -32768
    assert moved.max() <= 32767
    steps = step_table(step)[scores.astype(np.int32) + 32768]
    within = np.abs(levels) < MAX_LEVEL
    assert (4 * np.abs(target - moved)[within] <= 3 * steps[within] + 4).all()


def test_steps_follow_the_spread_of_a_mask_mean() -> None:
    table = step_table(1000)
    theta = sigma(np.arange(-32768, 32768).astype(np.int16)) / 65536
    exact = np.minimum(1000 / np.sqrt(theta * (1 - theta)), 65535)
    assert np.abs(table - exact).max() <= 0.51
    digest = hashlib.sha256(table.astype("<i4").tobytes())
    assert digest.hexdigest() == KNOWN["step table 1000"]
    assert step_units(1.0) == 2048
    assert step_units(0.3) == 614
    assert step_units(1e-9) == 1


def test_feedback_reaches_a_target_that_stands_still() -> None:
    state, target = initial_scores(20_000, 1), initial_scores(20_000, 2).astype(np.int32)
    for _ in range(6):
        levels = ERROR_FEEDBACK.quantise(target - state, state, 200)
        state = (state + ERROR_FEEDBACK.dequantise(levels, state, 200)).astype(np.int16)
    steps = step_table(200)[state.astype(np.int32) + 32768]
    assert (4 * np.abs(target - state) < 3 * steps).all()
    assert len(ERROR_FEEDBACK.encode(levels, state)) < 0.01 * state.size


def test_a_keyframe_of_few_values_takes_their_entropy() -> None:
    scores = make_state("few values", 200_000, np.random.default_rng(0))
    bits = 8 * len(KEYFRAME_ENTROPY.encode(scores)) / scores.size
    assert bits < 1.01 * np.log2(10)


def payloads() -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    n = 3001
    scores = initial_scores(n, 5)
    counts = (initial_scores(n, 6) // 1024).clip(-5, 5).astype(np.int32)
    levels = (initial_scores(n, 7) // 2048).astype(np.int8)
    return {
        "keyframe": (KEYFRAME.encode(scores), lambda p: KEYFRAME.decode(p, n)),
        "keyframe-entropy": (
            KEYFRAME_ENTROPY.encode(scores),
            lambda p: KEYFRAME_ENTROPY.decode(p, n),
        ),
        "exact": (EXACT.encode(counts, 5, scores), lambda p: EXACT.decode(p, 5, scores)),
        "error-feedback": (
            ERROR_FEEDBACK.encode(levels, scores),
            lambda p: ERROR_FEEDBACK.decode(p, scores),
        ),
    }


@pytest.mark.parametrize("name", sorted(payloads()))
def test_streams_are_known(name: str) -> None:
    assert hashlib.sha256(payloads()[name][0]).hexdigest() == KNOWN[name]


@pytest.mark.parametrize("name", sorted(payloads()))
def test_truncated_and_longer_streams_are_refused(name: str) -> None:
    payload, decode = payloads()[name]
    for length in [*range(0, len(payload), 7), len(payload) - 1]:
        with pytest.raises(PayloadError):
            decode(payload[:length])
    for tail in (b"\0", b"\0\0\0\0", payload):
        with pytest.raises(PayloadError):
            decode(payload + tail)


@pytest.mark.parametrize("name", ["keyframe-entropy", "exact", "error-feedback"])
def test_corrupt_streams_are_refused(name: str) -> None:
    payload, decode = payloads()[name]
    rng = np.random.default_rng(1)
    places = [*range(8), *rng.integers(0, len(payload), 300).tolist()]
    for place in places:
        corrupt = bytearray(payload)
        corrupt[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(PayloadError):
            decode(bytes(corrupt))
        with pytest.raises(PayloadError):
            decode(rng.bytes(len(payload)))


@pytest.mark.parametrize("name", ["exact", "error-feedback"])
def test_a_difference_for_another_state_is_refused(name: str) -> None:
    payload, _ = payloads()[name]
    other = -initial_scores(3001, 5)
    with pytest.raises(PayloadError):
        if name == "exact":
            EXACT.decode(payload, 5, other)
        else:
            ERROR_FEEDBACK.decode(payload, other)


def test_an_impossible_cohort_is_refused() -> None:
    for clients in (0, -1, 1 << 16):
        with pytest.raises(PayloadError, match="clients"):
            EXACT.decode(bytes(8), clients, np.zeros(4, dtype=np.int16))
