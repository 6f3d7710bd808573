"""Attacks on one private release: what an adversary learns who knows all but one coin.

Each takes the mechanism as an argument, so that a broken one can be given too.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm
from torch import Tensor

from client.loss import Moments
from client.mechanisms import Calibration, calibrate_moments
from common.accounting import gaussian_epsilon
from common.sections import PrivacyConfig

Mechanism = Callable[[Iterable[Sequence[Tensor]], Calibration], Moments]
CONFIDENCE = 0.999
"""Of each interval: an intact build fails one audit in a thousand."""
_ROWS = 100


@dataclass(frozen=True)
class Finding:
    """What one audit found.

    Attributes:
        audit: its name.
        passed: whether what was found agrees with the claim.
        tested: what was held against what, in one line.
        figures: what was measured.
    """

    audit: str
    passed: bool
    tested: str
    figures: dict[str, float] = field(default_factory=dict)


def clopper_pearson(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a probability (Clopper and Pearson, Biometrika 1934)."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def distinguish(
    mechanism: Mechanism,
    privacy: PrivacyConfig,
    trials: int,
    images: int = 4,
    confidence: float = CONFIDENCE,
) -> Finding:
    """Tell worst-case neighbours apart with the optimal test, over many fresh releases.

    One data set has features e_0 throughout, the other e_1 in one record: as far apart as two
    data sets can be. For a Gaussian release the likelihood ratio is linear in it, so no test
    does better than the threshold half way. Its two error rates, each in an exact interval,
    bound mu from both sides (as in Nasr et al., "Tight Auditing of Differentially Private
    Machine Learning", USENIX Security 2023), and mu gives epsilon. That last step takes the
    release for Gaussian; `epsilon_free` does without: log((TPR - delta) / FPR).
    """
    calibration = calibrate_moments(privacy, images)
    same = torch.zeros(images, 2, 1, 1)
    same[:, 0] = 1
    other = same.clone()
    other[0, :, 0, 0] = torch.tensor([0.0, 1.0])
    # Along e_1 - e_0 in both moments the releases are centred at -2 and at -2 + 4 / images.
    middle = -2 + 2 / images

    def says_other(features: Tensor) -> int:
        hits = 0
        for _ in range(trials):
            made = mechanism([[features]], calibration)
            both = (made.mean + made.variance)[0]
            along = both[1] - both[0]
            hits += bool(along > middle)
        return hits

    # Four bounds are used at once.
    each = 1 - (1 - confidence) / 2
    false_positive = clopper_pearson(says_other(same), trials, each)
    true_positive = clopper_pearson(says_other(other), trials, each)
    low, high = (
        max(0.0, float(norm.isf(fpr) - norm.isf(tpr)))
        for fpr, tpr in zip(reversed(false_positive), true_positive, strict=True)
    )
    interval = gaussian_epsilon(low, privacy.delta), gaussian_epsilon(high, privacy.delta)
    free = math.log(max(true_positive[0] - privacy.delta, 1e-300) / false_positive[1])
    return Finding(
        "distinguishing",
        interval[0] <= privacy.epsilon <= interval[1] and free <= privacy.epsilon,
        "the claim lies in the interval of epsilon on worst-case neighbours",
        {
            "claimed": privacy.epsilon,
            "epsilon_low": interval[0],
            "epsilon_high": interval[1],
            "epsilon_free": max(0.0, free),
            "trials": 2 * trials,
        },
    )


def one_run(
    mechanism: Mechanism,
    privacy: PrivacyConfig,
    canaries: int,
    guesses: float = 0.1,
    confidence: float = CONFIDENCE,
) -> Finding:
    """A canary audit from a single release (Steinke, Nasr and Jagielski, NeurIPS 2023).

    Record i is e_2i or e_2i+1 by a fair coin; from the release the adversary says which, for
    the share of the coins that he is surest of. So many right answers bound epsilon from
    below whatever the mechanism is. Here canaries meet in no coordinate, so of all coins he
    gets a share Phi(mu / 2) right, and that is checked from both sides.
    """
    calibration = calibrate_moments(privacy, canaries)
    coins = np.array([secrets.randbits(1) for _ in range(canaries)])
    made = mechanism(_one_hot(coins), calibration)
    pairs = (made.mean + made.variance).double().numpy().reshape(canaries, 2)
    lean = pairs[:, 1] - pairs[:, 0]
    right = (lean > 0) == (coins == 1)
    chosen = np.argsort(-np.abs(lean))[: max(1, round(guesses * canaries))]
    bound = epsilon_from_guesses(
        canaries, len(chosen), int(right[chosen].sum()), privacy.delta, 1 - confidence
    )
    share = clopper_pearson(int(right.sum()), canaries, confidence)
    expected = float(norm.cdf(calibration.mu / 2))
    return Finding(
        "one-run canaries",
        bound <= privacy.epsilon and share[0] <= expected <= share[1],
        "the lower bound stays below the claim, and coins are guessed as well as it says",
        {
            "claimed": privacy.epsilon,
            "epsilon_at_least": bound,
            "right_low": share[0],
            "right_expected": expected,
            "right_high": share[1],
            "canaries": canaries,
        },
    )


def _one_hot(coins: NDArray[np.int64]) -> Iterator[list[Tensor]]:
    for start in range(0, len(coins), _ROWS):
        part = coins[start : start + _ROWS]
        rows = torch.zeros(len(part), 2 * len(coins), 1, 1)
        chosen = 2 * np.arange(start, start + len(part)) + part
        rows[torch.arange(len(part)), torch.from_numpy(chosen)] = 1
        yield [rows]


def epsilon_from_guesses(
    canaries: int, guessed: int, right: int, delta: float, beta_: float
) -> float:
    """The largest epsilon that is refuted by so many right guesses, at a risk of beta.

    Steinke et al., for approximate privacy: under (epsilon, delta) at least v right of r
    guesses on m coins have a probability of at most P[W >= v] + 2 m delta alpha, where
    W ~ Binomial(r, e^eps / (e^eps + 1)) and alpha = max_i P[v - i <= W < v] / i.
    """
    counts = np.arange(1, right + 1)

    def risk(epsilon: float) -> float:
        q = 1 / (1 + math.exp(-epsilon))
        below = np.cumsum(binom.pmf(right - counts, guessed, q)) / counts
        alpha = float(below.max()) if right else 0.0
        return float(binom.sf(right - 1, guessed, q)) + 2 * canaries * delta * alpha - beta_

    if right == 0 or risk(0.0) >= 0:
        return 0.0
    return float(brentq(risk, 0.0, 60.0))
