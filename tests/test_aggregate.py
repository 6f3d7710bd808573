"""Counting and aggregation against plain NumPy, MADA against its two equations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import tiny_config

from common.codecs import mask_codec, score_codec
from common.config import RunConfig
from common.downlink import initial_state
from common.errors import PayloadError
from common.layout import mask_context, update_layout
from common.masks import pack
from common.seeding import uniform16
from common.state import LAMBDA_ONE, PROB_ONE, SCORE_UNIT, GlobalState, sigma
from server.aggregate import Closed
from server.counters import MaskCounter
from server.methods import make_aggregator

Bits = NDArray[np.uint8]


@st.composite
def masks(draw: st.DrawFn) -> Bits:
    """(clients, n) bits, some of them all equal."""
    shape = draw(st.integers(0, 40)), draw(st.integers(1, 200))
    seed, density = draw(st.integers(0, 2**32)), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    bits = np.random.default_rng(seed).random(shape) < density
    return bits.astype(np.uint8)


def counted(bits: Bits) -> MaskCounter:
    counter = MaskCounter(bits.shape[1])
    for mask in bits:
        counter.add(pack(mask))
    return counter


@given(bits=masks())
@settings(deadline=None)
def test_counts_are_the_sum(bits: Bits) -> None:
    counter = counted(bits)
    assert counter.masks == len(bits)
    assert np.array_equal(counter.counts(), bits.sum(axis=0))


@given(bits=masks(), cuts=st.lists(st.integers(0, 40), max_size=3))
@settings(deadline=None)
def test_partial_counters_merge(bits: Bits, cuts: list[int]) -> None:
    merged = MaskCounter(bits.shape[1])
    for part in np.split(bits, sorted(min(cut, len(bits)) for cut in cuts)):
        other = counted(part)
        before = other.counts()
        merged.merge(other)
        assert np.array_equal(other.counts(), before), "the other counter stays as it is"
    assert merged.masks == len(bits)
    assert np.array_equal(merged.counts(), bits.sum(axis=0))
    merged.add(pack(np.ones(bits.shape[1], dtype=np.uint8)))
    assert np.array_equal(merged.counts(), bits.sum(axis=0) + 1)


def test_counters_refuse_other_sizes() -> None:
    counter = MaskCounter(9)
    for wrong in (0, 8, 10, 16):
        with pytest.raises(ValueError, match=f"mask of {wrong} bits to a counter of 9"):
            counter.add(pack(np.ones(wrong, dtype=np.uint8)))
    assert counter.masks == 0
    with pytest.raises(ValueError, match="9 and 8"):
        counter.merge(MaskCounter(8))


def run_config(space: str = "score", **changes: object) -> RunConfig:
    model = {"width": 2, "latent": 16, "image_size": 16}
    return tiny_config(model=model, **{"mada": {"space": space}, **changes})


def close(config: RunConfig, state: GlobalState, updates: Sequence[Sequence[bytes]]) -> Closed:
    aggregator = make_aggregator(config, state, len(updates))
    for rank, payloads in enumerate(updates):
        aggregator.fold(aggregator.decode(payloads, rank))
    return aggregator.close()


def random_masks(config: RunConfig, clients: int, seed: int) -> Bits:
    """(clients, d) bits of clients that agree where the state is sure."""
    state = initial_state(config)
    draw = np.random.default_rng(seed)
    theta = logistic(state) + draw.normal(0, 0.1, state.dimension)
    return (draw.random((clients, state.dimension)) < theta).astype(np.uint8)


def logistic(state: GlobalState) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 1 / (1 + np.exp(-state.scores / SCORE_UNIT))
    return result


@pytest.mark.parametrize("clients", [1, 3, 10])
@pytest.mark.parametrize("space", ["score", "probability"])
def test_prism_is_the_clamped_mean_and_mada(space: str, clients: int) -> None:
    """Equations in floats: theta_hat = mean M, clamped; the state moves by lambda."""
    config = run_config(space)
    state = initial_state(config)
    bits = random_masks(config, clients, seed=clients)
    closed = close(config, state, [[pack(mask).tobytes()] for mask in bits])

    theta_hat = np.clip(bits.mean(axis=0), 0.01, 0.99)
    lam = closed.lam
    assert lam is not None
    assert (closed.clients, closed.state.round) == (clients, 1)
    if space == "score":
        s = state.scores / SCORE_UNIT
        expected = s + lam * (np.log(theta_hat / (1 - theta_hat)) - s)
        assert np.abs(closed.state.scores / SCORE_UNIT - expected).max() < 3 / SCORE_UNIT
    else:
        theta = logistic(state)
        expected = theta + lam * (theta_hat - theta)
        assert np.abs(logistic(closed.state) - expected).max() < 1e-4


def test_lambda_is_the_share_of_mask_positions_that_differ() -> None:
    config = run_config()
    state = initial_state(config)
    bits = random_masks(config, 5, seed=0)
    closed = close(config, state, [[pack(mask).tobytes()] for mask in bits])
    assert closed.lam is not None
    theta, theta_hat = logistic(state), np.clip(bits.mean(axis=0), 0.01, 0.99)
    d = state.dimension
    old = uniform16(d, config.seed, "mada-old", 0) / PROB_ONE < theta
    new = uniform16(d, config.seed, "mada-new", 0) / PROB_ONE < theta_hat
    # Rounding to 1/65536 decides a position or two.
    assert abs(closed.lam - np.mean(old != new)) <= 3 / d
    expected = theta * (1 - theta_hat) + theta_hat * (1 - theta)
    deviation = np.sqrt((expected * (1 - expected)).sum()) / d
    assert abs(closed.lam - expected.mean()) < 5 * deviation


def test_without_mada_the_state_is_the_estimate() -> None:
    config = run_config(mada={"enabled": False})
    bits = random_masks(config, 4, seed=1)
    closed = close(config, initial_state(config), [[pack(mask).tobytes()] for mask in bits])
    assert closed.lam == 1.0
    expected = np.clip(bits.mean(axis=0), 0.01, 0.99)
    assert np.abs(sigma(closed.state.scores) / PROB_ONE - expected).max() < 1e-4


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_prism_alpha_averages_uploaded_scores(alpha: float) -> None:
    config = run_config(alpha=alpha)
    state = initial_state(config)
    border = sum(segment.count for segment in update_layout(config) if segment.kind == "mask")
    assert (border == 0) == (alpha == 1.0)
    bits = random_masks(config, 3, seed=2)[:, :border]
    draw = np.random.default_rng(3)
    scores = draw.integers(-32768, 32767, (3, state.dimension - border), dtype=np.int16)
    updates = [
        [*([pack(mask).tobytes()] if border else []), own.astype("<i2").tobytes()]
        for mask, own in zip(bits, scores, strict=True)
    ]
    closed = close(config, state, updates)
    lam = closed.lam
    assert lam is not None
    s = state.scores[border:].astype(float)
    expected = s + lam * (scores.astype(float).mean(axis=0) - s)
    assert np.abs(closed.state.scores[border:] - expected).max() <= 1.01


@pytest.mark.parametrize("up", ["raw", "flips"])
def test_the_order_of_arrival_does_not_matter(up: str) -> None:
    config = run_config(alpha=0.2, codec={"up": up})
    state = initial_state(config)
    aggregator = make_aggregator(config, state, 4)
    contributions = [
        aggregator.decode(random_update(config, state, rank), rank) for rank in range(4)
    ]
    digests = set()
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        aggregator = make_aggregator(config, state, 4)
        for rank in order:
            aggregator.fold(contributions[rank])
        closed = aggregator.close()
        assert closed.lam == round((closed.lam or 0) * LAMBDA_ONE) / LAMBDA_ONE
        digests.add(closed.state.digest())
    assert len(digests) == 1


def random_update(config: RunConfig, state: GlobalState, rank: int) -> list[bytes]:
    """What a client of that rank may send under the config's codecs."""

    draw = np.random.default_rng(rank)
    payloads = []
    for segment in update_layout(config):
        scores = state.scores[segment.slice]
        if segment.kind == "mask":
            context = mask_context(config, state, segment, rank, 4)
            codec = mask_codec(segment.codec)
            payloads.append(codec.encode(codec.sample(sigma(scores), context, draw), context))
        else:
            payloads.append(score_codec(segment.codec).encode(scores))
    return payloads


def test_updates_that_do_not_decode_change_nothing() -> None:
    config = run_config()
    state = initial_state(config)
    bits = random_masks(config, 2, seed=4)
    good = [[pack(mask).tobytes()] for mask in bits]
    expected = close(config, state, good).state.digest()
    aggregator = make_aggregator(config, state, 2)
    for payload in (b"", good[0][0][:-1], good[0][0] + b"\0"):
        with pytest.raises(PayloadError):
            aggregator.decode([payload], 0)
    for rank, payloads in enumerate(good):
        aggregator.fold(aggregator.decode(payloads, rank))
    assert aggregator.close().state.digest() == expected
