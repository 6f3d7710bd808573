"""Shared-dither flips: exact marginals, an unbiased estimator, less variance, few bits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from common.codecs import CodecContext, mask_codec, selection_threshold
from common.codecs.flips import dither, selection
from common.errors import PayloadError
from common.masks import pack, unpack
from common.state import Probs, Scores, sigma

FLIPS = mask_codec("flips")
Floats = NDArray[np.float64]


def at_divergence(target: float, n: int, clients: int = 1) -> tuple[Scores, list[Probs]]:
    """A state of N(0, 5) logits and clients that drifted from it by a mean KL in bits."""
    rng = np.random.default_rng(1)
    state = np.clip(rng.normal(0, 5 * 2048, n), -32768, 32767).astype(np.int16)
    noise = rng.standard_normal((clients, n))
    low, high = 0.0, 4.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        drifted = np.clip(state + 2048 * middle * noise[0], -32768, 32767).astype(np.int16)
        below = divergence(sigma(state), sigma(drifted)) < target
        low, high = (middle, high) if below else (low, middle)
    moved = np.clip(state + 2048 * low * noise, -32768, 32767).astype(np.int16)
    return state, [sigma(scores) for scores in moved]


def divergence(state: Probs, client: Probs) -> float:
    p, q = state / 65536, client / 65536
    return float((q * np.log2(q / p) + (1 - q) * np.log2((1 - q) / (1 - p))).mean())


def context(
    scores: Scores, rank: int, cohort: int, round_: int = 0, share: float = 1.0
) -> CodecContext:
    return CodecContext(
        seed=7, round=round_, rank=rank, cohort_size=cohort, offset=0, scores=scores, share=share
    )


def difference(probs: Probs, ctx: CodecContext) -> NDArray[np.int8]:
    """M - R."""
    mask = unpack(FLIPS.sample(probs, ctx, np.random.default_rng(0))).astype(np.int8)
    reference = FLIPS.reference(ctx)
    assert reference is not None
    return mask - unpack(reference).astype(np.int8)


@pytest.mark.parametrize("rank", [0, 2])
def test_marginals_are_exact(rank: int) -> None:
    """Chi-square of the number of ones over independent rounds, for each probability."""
    levels = np.array([1, 300, 655, 8192, 32768, 50000, 64881, 65535], dtype=np.uint16)
    probs = np.repeat(levels, 5_000)
    scores = np.zeros(probs.size, dtype=np.int16)
    rounds = 200
    ones = np.zeros(levels.size)
    for t in range(rounds):
        ctx = context(scores, rank, 3, round_=t)
        bits = unpack(FLIPS.sample(probs, ctx, np.random.default_rng(0)))
        ones += bits.reshape(levels.size, -1).sum(axis=1)
    draws = rounds * 5_000
    p = levels / 65536
    rare = np.minimum(p, 1 - p) * draws < 20
    statistic = ((ones - draws * p) ** 2 / (draws * p * (1 - p)))[~rare].sum()
    assert chi2.cdf(statistic, (~rare).sum()) < 0.999
    assert (np.minimum(ones, draws - ones)[rare] <= 35).all()


def test_the_dither_is_uniform_and_rotated_by_rank() -> None:
    scores = np.zeros(200_000, dtype=np.int16)
    first, second = dither(context(scores, 0, 4)), dither(context(scores, 1, 4))
    assert (second - first == np.uint16(16384)).all()
    cells = np.bincount(first >> 8, minlength=256)
    expected = scores.size / 256
    assert chi2.cdf(((cells - expected) ** 2 / expected).sum(), 255) < 0.999


def test_dither_and_selection_are_independent() -> None:
    scores = np.zeros(200_000, dtype=np.int16)
    ctx = context(scores, 1, 4, share=0.25)
    chosen = selection(ctx)
    assert chosen is not None
    assert abs(chosen.size / scores.size - 0.25) < 0.005
    cells = np.bincount(dither(ctx)[chosen] >> 8, minlength=256)
    expected = chosen.size / 256
    assert chi2.cdf(((cells - expected) ** 2 / expected).sum(), 255) < 0.999


def test_subsets_of_a_cohort_cover_every_coordinate_equally() -> None:
    scores = np.zeros(10_000, dtype=np.int16)
    times = np.zeros(scores.size, dtype=int)
    for rank in range(10):
        chosen = selection(context(scores, rank, 10, share=0.3))
        assert chosen is not None
        times[chosen] += 1
    assert times.min() >= 2
    assert times.max() <= 4


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_estimator_is_unbiased(share: float) -> None:
    cohort, rounds, copies = 3, 40, 2_000
    states = np.repeat(np.array([-4000, -500, 0, 2500, 9000], dtype=np.int16), copies)
    probs = [sigma((states + shift).astype(np.int16)) for shift in (-900, 300, 1500)]
    exact = selection_threshold(share) / 65536
    total = np.zeros(states.size)
    for t in range(rounds):
        for rank, q in enumerate(probs):
            ctx = context(states, rank, cohort, round_=t, share=share)
            total += difference(q, ctx) / (cohort * exact)
    estimate = (sigma(states) / 65536 + total / rounds).reshape(5, -1)
    truth = np.mean([q / 65536 for q in probs], axis=0).reshape(5, -1)[:, 0]
    error = estimate.std(axis=1) / np.sqrt(copies)
    assert (np.abs(estimate.mean(axis=1) - truth) < 4 * error + 1e-12).all()


def variance_ratio(target: float, share: float, cohort: int = 10, n: int = 60_000) -> float:
    """Error of P + mean(M - R) / share over the variance of the plain mean of masks."""
    state, clients = at_divergence(target, n, cohort)
    total = np.zeros(n)
    for rank, q in enumerate(clients):
        total += difference(q, context(state, rank, cohort, share=share))
    exact = selection_threshold(share) / 65536
    estimate = sigma(state) / 65536 + total / (cohort * exact)
    truth = np.stack(clients) / 65536
    plain = float((truth * (1 - truth)).mean()) / cohort
    return float(((estimate - truth.mean(axis=0)) ** 2).mean()) / plain


def test_variance_is_at_most_four_tenths_of_the_plain_mean() -> None:
    assert variance_ratio(0.014, 1.0) <= 0.4


def test_a_third_of_the_coordinates_costs_no_more_variance_than_plain_masks() -> None:
    assert variance_ratio(0.014, 1 / 3) <= 1.2


@pytest.mark.parametrize(("target", "design"), [(0.014, 0.100), (0.03, 0.147), (0.1, 0.268)])
def test_bits_stay_within_five_percent_of_the_design(target: float, design: float) -> None:
    n = 400_000
    state, (probs,) = at_divergence(target, n)
    ctx = context(state, 1, 10)
    mask = FLIPS.sample(probs, ctx, np.random.default_rng(0))
    bits = 8 * len(FLIPS.encode(mask, ctx)) / n
    assert target < bits <= 1.05 * design


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_bits_fall_with_the_share(share: float) -> None:
    n = 400_000
    state, (probs,) = at_divergence(0.014, n)
    sizes = []
    for sent in (1.0, share):
        ctx = context(state, 1, 10, share=sent)
        mask = FLIPS.sample(probs, ctx, np.random.default_rng(0))
        assert FLIPS.decode(FLIPS.encode(mask, ctx), ctx) == mask
        sizes.append(len(FLIPS.encode(mask, ctx)))
    assert sizes[1] <= 1.1 * share * sizes[0]


def test_an_unchanged_client_costs_next_to_nothing() -> None:
    state, _ = at_divergence(0.014, 50_000)
    ctx = context(state, 0, 5)
    mask = FLIPS.sample(sigma(state), ctx, np.random.default_rng(0))
    assert mask == FLIPS.reference(ctx)
    assert len(FLIPS.encode(mask, ctx)) < 32


def test_a_flip_where_nothing_is_sent_is_refused() -> None:
    ctx = context(np.zeros(1000, dtype=np.int16), 0, 5, share=0.1)
    bits = unpack(FLIPS.sample(sigma(ctx.scores), ctx, np.random.default_rng(0)))
    chosen = selection(ctx)
    assert chosen is not None
    outside = np.setdiff1d(np.arange(1000), chosen)[0]
    bits[outside] ^= 1
    with pytest.raises(PayloadError, match="sends nothing"):
        FLIPS.encode(pack(bits), ctx)


def test_contexts_must_make_sense() -> None:
    scores = np.zeros(4, dtype=np.int16)
    with pytest.raises(ValueError, match="rank 3"):
        context(scores, 3, 3)
    with pytest.raises(ValueError, match="share"):
        context(scores, 0, 3, share=0.0)
