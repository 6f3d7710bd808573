"""What theory says that a mask takes, against the formulas written out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import ProtocolError
from common.state import PROB_ONE, Probs, entropy_bits, logit, sigma
from common.theory import MaskBits, figures

probs = st.integers(1, 300).flatmap(
    lambda n: st.tuples(*[arrays(np.uint16, n, elements=st.integers(1, PROB_ONE - 1))] * 2)
)


def of(state: list[int], client: list[int]) -> MaskBits:
    return MaskBits.of(np.array(state, dtype=np.uint16), np.array(client, dtype=np.uint16))


def test_by_hand() -> None:
    half, quarter = PROB_ONE // 2, PROB_ONE // 4
    assert of([half], [half]) == MaskBits(1.0, 0.0)
    # Under one half every outcome takes one bit; what the client's own entropy lacks is KL.
    entropy = 0.25 * 2 + 0.75 * math.log2(4 / 3)
    bits = of([half, half], [quarter, half])
    assert (bits.cross_entropy, bits.kl) == pytest.approx((1.0, (1 - entropy) / 2))
    bits = of([quarter], [half])
    cross_entropy = 0.5 * 2 + 0.5 * math.log2(4 / 3)
    assert (bits.cross_entropy, bits.kl) == pytest.approx((cross_entropy, cross_entropy - 1))
    # The rarest outcome takes 16 bits, and no table entry less than 1 / 65536.
    assert of([1], [PROB_ONE - 1]).cross_entropy == pytest.approx(16, rel=1e-3)
    assert of([0], [0]) == of([1], [1])


@given(probs)
def test_cross_entropy_is_entropy_and_divergence(pair: tuple[Probs, Probs]) -> None:
    state, client = pair
    bits = MaskBits.of(state, client)
    q = client / PROB_ONE
    entropy = -(q * np.log2(q) + (1 - q) * np.log2(1 - q)).mean()
    assert bits.cross_entropy == pytest.approx(entropy + bits.kl, rel=1e-9, abs=1e-12)
    assert 0 <= bits.kl <= bits.cross_entropy <= 16
    assert MaskBits.of(client, client).kl == 0


def test_many_parameters_are_the_mean_of_all() -> None:
    rng = np.random.default_rng(0)
    state, client = rng.integers(1, PROB_ONE, (2, 150_001)).astype(np.uint16)
    p, q = state / PROB_ONE, client / PROB_ONE
    whole = MaskBits.of(state, client)
    assert whole.cross_entropy == pytest.approx(
        -(q * np.log2(p) + (1 - q) * np.log2(1 - p)).mean(), rel=1e-12
    )
    assert whole.kl == pytest.approx(
        (q * np.log2(q / p) + (1 - q) * np.log2((1 - q) / (1 - p))).mean(), rel=1e-9
    )
    scores = logit(state)
    assert MaskBits.of(sigma(scores), sigma(scores)).cross_entropy == pytest.approx(
        entropy_bits(scores)
    )


def test_means_and_names() -> None:
    assert MaskBits.mean([]) is None
    assert MaskBits.mean([None]) is None
    mean = MaskBits.mean([MaskBits(0.5, 0.25), None, MaskBits(1.0, 0.75)])
    assert mean == MaskBits(0.75, 0.5)
    assert figures(mean) == {"cross_entropy_bits": 0.75, "kl_bits": 0.5}
    assert figures(None) == {"cross_entropy_bits": None, "kl_bits": None}


@pytest.mark.parametrize(
    "bad", [(math.nan, 0), (1, math.nan), (math.inf, 0), (1, -1e-9), (16.1, 0), (0.5, 0.6)]
)
def test_figures_that_cannot_be_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ProtocolError, match="bits a parameter lie between 0 and 16"):
        MaskBits(*bad)
