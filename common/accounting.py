"""Exact accounting for Gaussian releases.

A release is described by mu, its L2 sensitivity divided by its noise's standard deviation.
It is mu-Gaussian differentially private (Dong, Roth and Su, "Gaussian Differential Privacy",
arXiv 1905.02383), and its (epsilon, delta) are those of Balle and Wang, "Improving the Gaussian
Mechanism for Differential Privacy: Analytical Calibration and Optimal Denoising", ICML 2018.
Nothing here is a bound: each epsilon is the smallest that holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The smallest delta at which a release is (epsilon, delta)-private.

    Balle and Wang, Theorem 8: Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu).

    Args:
        epsilon: not negative.
        mu: sensitivity over standard deviation; 0 releases nothing, infinity everything.
    """
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    kept = float(ndtr(mu / 2 - epsilon / mu))
    # In logarithms, because e^eps overflows long before the product does.
    spent = math.exp(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)))
    return max(0.0, kept - spent)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon at which a release is (epsilon, delta)-private.

    Args:
        mu: sensitivity over standard deviation; infinity gives infinity.
        delta: in (0, 1).
    """
    if math.isinf(mu):
        return math.inf
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    # The tail bound that concentrated differential privacy gives is never too small.
    upper = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda e: gaussian_delta(e, mu) - delta, 0.0, upper, xtol=1e-12))


def gaussian_sigma(epsilon: float, delta: float) -> float:
    """sigma_0: the least standard deviation at sensitivity 1 that gives (epsilon, delta).

    Args:
        epsilon: above 0.
        delta: in (0, 1).
    """
    low, high = math.log(1e-6), math.log(1e9)
    root = brentq(lambda x: gaussian_delta(epsilon, math.exp(-x)) - delta, low, high, xtol=1e-12)
    # Rounded up past the solver's tolerance, so that the guarantee is met and not just neared.
    return math.exp(float(root)) * (1 + 1e-9)


def compose(mus: Iterable[float]) -> float:
    """The mu of several releases over the same data, each chosen knowing the ones before.

    The root of the sum of squares, exact for Gaussian releases (Dong, Roth and Su, Corollary 3.3).
    """
    return math.hypot(*mus)
