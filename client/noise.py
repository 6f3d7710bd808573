"""Gaussian noise without floating point, from the operating system's entropy.

A float sampler leaks: which doubles it can reach depends on the value that the noise is added
to, and an observer who knows this tells two data sets apart whatever epsilon is claimed
(Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012,
for Laplace; Jin, McMurtry, Rubinstein and Ohrimenko, "Are We There Yet? Timing and
Floating-Point Attacks on Differential Privacy Systems", S&P 2022, for Gaussian). So what is
released is cut off to a grid first, the noise is an integer number of grid steps, and the sum
is exact.

The integers follow the discrete Gaussian (Canonne, Kamath and Steinke, "The Discrete Gaussian
for Differential Privacy", NeurIPS 2020), sampled exactly, with random bits alone. A standard
deviation is 2**24 grid steps: there the discrete Gaussian and a rounded continuous one, whose
guarantee is that of the continuous mechanism by post-processing, differ by less than 1e-16 in
total variation a coordinate.
"""

from __future__ import annotations

import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]

SIGMA_BITS: Final = 24
"""log2 of the standard deviation in grid steps; (40 sigma)^2 must fit 64 bits."""


def discrete_gaussian(count: int, sigma_bits: int = SIGMA_BITS) -> Integers:
    """(count,) int64, P(x) proportional to exp(-x^2 / (2 sigma^2)) with sigma = 2**sigma_bits.

    Canonne, Kamath and Steinke, Algorithm 3: a discrete Laplace of scale sigma, accepted with
    probability exp(-(|x| - sigma)^2 / (2 sigma^2)). There is no way to give it a seed.
    """
    out = np.empty(count, dtype=np.int64)
    missing = np.arange(count)
    while missing.size:
        proposed = _discrete_laplace(missing.size, sigma_bits)
        distance = np.abs(proposed) - (1 << sigma_bits)
        accepted = _bernoulli_exp(distance * distance, 2 * sigma_bits + 1)
        out[missing[accepted]] = proposed[accepted]
        missing = missing[~accepted]
    return out


def _discrete_laplace(count: int, scale_bits: int) -> Integers:
    """(count,) int64, P(x) proportional to exp(-|x| / 2**scale_bits); Algorithm 2."""
    out = np.empty(count, dtype=np.int64)
    missing = np.arange(count)
    while missing.size:
        low = (_words(missing.size) >> np.uint64(64 - scale_bits)).astype(np.int64)
        high = np.zeros(missing.size, dtype=np.int64)
        going = np.arange(missing.size)
        while going.size:
            going = going[_bernoulli_exp(np.full(going.size, 1), 0)]
            high[going] += 1
        size = low + (high << scale_bits)
        negative = (_words(missing.size) & np.uint64(1)).astype(np.bool_)
        # Minus zero is drawn again, or zero would come twice as often.
        kept = _bernoulli_exp(low, scale_bits) & ~(negative & (size == 0))
        out[missing[kept]] = np.where(negative, -size, size)[kept]
        missing = missing[~kept]
    return out


def _bernoulli_exp(numerator: Integers, bits: int) -> Truths:
    """True with probability exp(-numerator / 2**bits), each; Algorithm 1.

    Args:
        numerator: (n,) int64, not negative.
        bits: log2 of the denominator.
    """
    whole = numerator >> bits
    out = _bernoulli_exp_fraction(numerator - (whole << bits), bits)
    going = np.flatnonzero(out & (whole > 0))
    while going.size:
        survived = _bernoulli_exp_fraction(np.full(going.size, 1), 0)
        out[going[~survived]] = False
        whole[going] -= 1
        going = going[survived]
        going = going[whole[going] > 0]
    return out


def _bernoulli_exp_fraction(numerator: Integers, bits: int) -> Truths:
    """As `_bernoulli_exp`, for numerators up to 2**bits.

    The first k at which a Bernoulli of (numerator / 2**bits) / k fails is odd with the wanted
    probability: the alternating series of the exponential.
    """
    out = np.zeros(numerator.size, dtype=np.bool_)
    going = np.arange(numerator.size)
    k = 1
    while going.size:
        if bits:
            drawn = (_words(going.size) >> np.uint64(64 - bits)).astype(np.int64)
        else:
            drawn = np.zeros(going.size, dtype=np.int64)
        succeeded = (drawn < numerator[going]) & _one_in(k, going.size)
        out[going[~succeeded]] = k % 2 == 1
        going = going[succeeded]
        k += 1
    return out


def _one_in(k: int, count: int) -> Truths:
    """(count,) true with probability 1 / k, exactly: words beyond a multiple of k are redrawn."""
    words = _words(count)
    limit = np.uint64((1 << 64) // k * k - 1)
    while (over := words > limit).any():
        words[over] = _words(int(over.sum()))
    chosen: Truths = words % np.uint64(k) == 0
    return chosen


def _words(count: int) -> NDArray[np.uint64]:
    """(count,) uint64 from the operating system; urandom blocks until it has been seeded."""
    return np.frombuffer(os.urandom(8 * count), dtype="<u8").astype(np.uint64)
