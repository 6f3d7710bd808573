"""The global state, exactly: fixed-point scores that both sides hold bit for bit.

A score s is an int16 in units of 1/2048 logit; a probability P is a uint16 in units of
1/65536. Both tables that join them are built with integers and `decimal`, never with floats,
and their digest is compared when a client joins.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import PayloadError
from common.seeding import uniform16

SCORE_UNIT: Final = 2048
"""Score units per logit."""
PROB_ONE: Final = 65536
"""The probability 1, which no table entry reaches."""
THETA_MIN: Final = 655
THETA_MAX: Final = PROB_ONE - THETA_MIN
"""Aggregated probabilities are clamped to [0.01, 0.99] in units of 1/65536."""
LAMBDA_ONE: Final = 65536
"""A move by the whole way; lambda travels as an integer share of this."""

Scores = NDArray[np.int16]
Probs = NDArray[np.uint16]
Weights = NDArray[np.float32]
Values = Scores | Weights

_DECIMAL = Context(prec=50)


@cache
def _odds() -> tuple[Decimal, ...]:
    """exp(k / 4096) for k = 0 .. 65537: odds at every score and half score from 0 up."""
    step = _DECIMAL.exp(Decimal(1) / Decimal(2 * SCORE_UNIT))
    odds = [Decimal(1)]
    for _ in range(65537):
        odds.append(_DECIMAL.multiply(odds[-1], step))
    return tuple(odds)


@cache
def sigma_table() -> Probs:
    """(65536,) uint16: round(65536 * sigma(s / 2048)) at index s + 32768, within [1, 65535]."""
    odds = _odds()
    upper = [
        int(_DECIMAL.divide(PROB_ONE * odds[2 * s], 1 + odds[2 * s]).to_integral_value())
        for s in range(32769)
    ]
    table = np.empty(65536, dtype=np.uint16)
    table[32768:] = np.minimum(upper[:32768], PROB_ONE - 1)
    table[:32768] = np.maximum(PROB_ONE - np.array(upper[:0:-1], dtype=np.int64), 1)
    table.flags.writeable = False
    return table


@cache
def logit_table() -> Scores:
    """(65536,) int16: round(2048 * logit(P / 65536)) at index P; index 0 reads as 1."""
    odds = _odds()
    upper = np.empty(32768, dtype=np.int16)
    s = 0
    for i in range(32768):
        p = 32768 + i
        # s is right once the odds lie below those half a score above it.
        while p > (PROB_ONE - p) * odds[2 * s + 1]:
            s += 1
        upper[i] = s
    table = np.empty(65536, dtype=np.int16)
    table[32768:] = upper
    table[1:32768] = -upper[:0:-1]
    table[0] = table[1]
    table.flags.writeable = False
    return table


@cache
def tables_digest() -> bytes:
    """SHA-256 over both tables, compared at join."""
    sha = hashlib.sha256(sigma_table().astype("<u2").tobytes())
    sha.update(logit_table().astype("<i2").tobytes())
    return sha.digest()


def sigma(scores: Scores) -> Probs:
    """Probabilities of scores, elementwise; int16 (d,) -> uint16 (d,)."""
    return sigma_table()[scores.astype(np.int32) + 32768]


def logit(probs: Probs) -> Scores:
    """Scores of probabilities, elementwise; uint16 (d,) -> int16 (d,)."""
    return logit_table()[probs]


def initial_scores(dimension: int, seed: int) -> Scores:
    """(d,) int16 drawn from N(0, 1) logits, the same on every platform.

    The sum of twelve uniforms has variance 1, an excess kurtosis of -0.1, and needs integers
    alone. State 0 is therefore never sent.
    """
    total = np.zeros(dimension, dtype=np.int64)
    for i in range(12):
        total += uniform16(dimension, seed, "initial-scores", i)
    centred = total - 6 * (PROB_ONE - 1)
    return ((centred + 16) >> 5).astype(np.int16)


def entropy_bits(scores: Scores) -> float:
    """Mean entropy of the mask in bits a parameter."""
    histogram = np.bincount(scores.astype(np.int32) + 32768, minlength=65536)
    p = sigma_table() / PROB_ONE
    table = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return float(histogram @ table / max(scores.size, 1))


@dataclass(frozen=True)
class GlobalState:
    """What round `round` starts from.

    Attributes:
        round: rounds closed so far.
        values: (d,) int16 scores, or (d,) float32 weights where the method trains weights.
    """

    round: int
    values: Values

    def __post_init__(self) -> None:
        if self.values.dtype not in (np.int16, np.float32) or self.values.ndim != 1:
            raise TypeError(f"a state is a vector of int16 or float32, not {self.values.dtype}")
        self.values.flags.writeable = False

    @property
    def dimension(self) -> int:
        """d, the number of parameters."""
        return int(self.values.size)

    @property
    def scores(self) -> Scores:
        """The values of a masked method.

        Raises:
            TypeError: the method trains weights.
        """
        if self.values.dtype != np.int16:
            raise TypeError("this state holds weights, not scores")
        return self.values  # type: ignore[return-value]

    @property
    def weights(self) -> Weights:
        """The values of a method that trains weights.

        Raises:
            TypeError: the method is a masked one.
        """
        if self.values.dtype != np.float32:
            raise TypeError("this state holds scores, not weights")
        return self.values  # type: ignore[return-value]

    def digest(self) -> bytes:
        """SHA-256 over the round and the values; travels with every round."""
        sha = hashlib.sha256(f"{self.round}:{self.values.dtype.str[1:]}:".encode())
        sha.update(self.to_bytes())
        return sha.digest()

    def to_bytes(self) -> bytes:
        """The keyframe payload: all values, little-endian."""
        return self.values.astype(self.values.dtype.newbyteorder("<"), copy=False).tobytes()

    @classmethod
    def from_bytes(cls, round_: int, payload: bytes, dimension: int, dtype: str) -> GlobalState:
        """Read a keyframe payload back.

        Args:
            round_: the round that the state belongs to.
            payload: d values, little-endian.
            dimension: d, as the run's config gives it.
            dtype: "int16" or "float32".

        Raises:
            PayloadError: the length is not that of d values.
        """
        little = np.dtype(dtype).newbyteorder("<")
        if len(payload) != dimension * little.itemsize:
            raise PayloadError(
                f"keyframe of {len(payload)} bytes; {dimension} values of {dtype} take "
                f"{dimension * little.itemsize}"
            )
        return cls(round_, np.frombuffer(payload, dtype=little).astype(dtype))


def move_in_score_space(scores: Scores, target: Probs, lam: int) -> Scores:
    """Return s + lambda (logit(target) - s) in integers: the released code's MADA step.

    Args:
        scores: (d,) int16, the current state.
        target: (d,) uint16, the new estimate of theta.
        lam: lambda in units of 1/65536.
    """
    s = scores.astype(np.int64)
    return (s + _scaled(logit(target).astype(np.int64) - s, lam)).astype(np.int16)


def move_in_probability_space(scores: Scores, target: Probs, lam: int) -> Scores:
    """Return logit(theta + lambda (target - theta)) in integers: the paper's MADA equation.

    Scores whose probability does not move stay as they are, so repeated rounding to the
    coarser grid of probabilities cannot make a state creep.
    """
    p = sigma(scores).astype(np.int64)
    moved = p + _scaled(target.astype(np.int64) - p, lam)
    return np.where(moved == p, scores, logit(moved.astype(np.uint16)))


def _scaled(difference: NDArray[np.int64], lam: int) -> NDArray[np.int64]:
    """Round lambda * difference half up, in integers."""
    if not 0 <= lam <= LAMBDA_ONE:
        raise ValueError(f"lambda {lam} is outside [0, {LAMBDA_ONE}]")
    return (difference * lam + LAMBDA_ONE // 2) >> 16
