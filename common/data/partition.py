"""One data set cut into the clients' parts.

Every client cuts the same set by itself and keeps its own part, so the cut must come out the
same everywhere: it is made of raw Philox words and stable sorts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, gammaln

from common.errors import DataError
from common.sections import DataConfig
from common.seeding import words

Indices = NDArray[np.int64]


def partition(labels_or_n: NDArray[np.int64] | int, data: DataConfig, seed: int) -> list[Indices]:
    """Give every client its images; no image twice, no client without.

    Args:
        labels_or_n: (n,) classes of the images, or n alone where they have none.
        data: which cut, into how many parts.
        seed: the run's seed; equal seeds cut equally.

    Returns:
        per client ascending positions in [0, n). `iid`, `shards` and `attribute` give out
        every image; `dirichlet` gives each client n // clients.

    Raises:
        DataError: the cut needs labels, or more images than there are.
    """
    labelled = not isinstance(labels_or_n, int)
    n = labels_or_n if isinstance(labels_or_n, int) else len(labels_or_n)
    if n < data.clients:
        raise DataError(
            f"{n} images cannot be split among {data.clients} clients: lower data.clients"
        )
    if data.partition == "iid":
        parts = iid(n, data.clients, seed)
    elif not labelled:
        raise DataError(f'data.partition = "{data.partition}" needs labels, and there are none')
    else:
        labels = np.asarray(labels_or_n)
        if data.partition == "shards":
            parts = shards(labels, data.clients, data.shards_per_client, seed)
        elif data.partition == "dirichlet":
            parts = dirichlet(labels, data.clients, data.dirichlet_alpha, seed)
        else:
            parts = by_attribute(labels, data.clients, seed)
    return [np.sort(part) for part in parts]


def iid(n: int, clients: int, seed: int) -> list[Indices]:
    """Shuffle, then cut into parts whose sizes differ by at most one."""
    return np.array_split(_shuffled(n, seed, "partition-iid"), clients)


def shards(
    labels: NDArray[np.int64], clients: int, shards_per_client: int, seed: int
) -> list[Indices]:
    """Sort by label, cut into equal shards, deal them out (McMahan et al., arXiv 1602.05629).

    Raises:
        DataError: there are fewer images than shards.
    """
    count = clients * shards_per_client
    if len(labels) < count:
        raise DataError(
            f"{len(labels)} images cannot be cut into {clients} x {shards_per_client} shards; "
            "lower data.shards_per_client"
        )
    shuffled = _shuffled(len(labels), seed, "partition-shuffle")
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_label, count)
    dealt = _shuffled(count, seed, "partition-shards").reshape(clients, shards_per_client)
    return [np.concatenate([pieces[shard] for shard in hand]) for hand in dealt]


def dirichlet(labels: NDArray[np.int64], clients: int, alpha: float, seed: int) -> list[Indices]:
    """Equally many images each, in class proportions drawn from a Dirichlet distribution.

    Hsu, Qi and Brown, arXiv 1909.06335: client by client q ~ Dir(alpha C p) over the C classes
    with shares p, so alpha is the concentration per class where classes are balanced. Where a
    class runs out, the rest of q takes its place. Drawing a split per class instead leaves
    clients empty at the published alpha.

    Args:
        labels: (n,) classes.
        clients: parts to cut, each of n // clients images.
        alpha: concentration; small is extreme.
        seed: the run's seed.
    """
    shuffled = _shuffled(len(labels), seed, "partition-shuffle")
    classes = np.unique(labels)
    stock = [shuffled[labels[shuffled] == label] for label in classes]
    shares = np.array([len(pile) for pile in stock]) / len(labels)
    parts = []
    for client in range(clients):
        log_q = _log_gamma_variates(alpha * len(classes) * shares, seed, client)
        counts = _fill(len(labels) // clients, log_q, np.array([len(pile) for pile in stock]))
        parts.append(
            np.concatenate([pile[:count] for pile, count in zip(stock, counts, strict=True)])
        )
        stock = [pile[count:] for pile, count in zip(stock, counts, strict=True)]
    return parts


def by_attribute(labels: NDArray[np.int64], clients: int, seed: int) -> list[Indices]:
    """Every client holds one label value, each value about its share of the clients.

    Raises:
        DataError: there are more values than clients, or too few images of one value.
    """
    shuffled = _shuffled(len(labels), seed, "partition-shuffle")
    values, counts = np.unique(labels, return_counts=True)
    if len(values) > clients:
        raise DataError(f"{clients} clients cannot hold one of {len(values)} label values each")
    holders = 1 + _round_to_total(
        (clients - len(values)) * counts / counts.sum(), clients - len(values)
    )
    parts: list[Indices] = []
    for value, count, among in zip(values, counts, holders, strict=True):
        if count < among:
            raise DataError(f"{count} images of label {value} cannot go to {among} clients")
        parts.extend(np.array_split(shuffled[labels[shuffled] == value], among))
    return parts


def label_histogram(
    parts: Sequence[Indices], labels: NDArray[np.int64], classes: int = 0
) -> NDArray[np.int64]:
    """How many images of each class each client holds.

    Args:
        parts: per client positions in the labels.
        labels: (n,) classes from 0.
        classes: at least so many, though images may have none of the last.

    Returns:
        (clients, classes) int64.
    """
    classes = max(classes, int(labels.max()) + 1)
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def _shuffled(n: int, seed: int, purpose: str) -> Indices:
    """(n,) a permutation of [0, n)."""
    return words(n, seed, purpose).argsort(kind="stable").astype(np.int64)


def _log_gamma_variates(shape: NDArray[np.float64], seed: int, client: int) -> NDArray[np.float64]:
    """(C,) logarithms of Gamma(shape, 1) variates; normalised, they are a Dirichlet draw.

    By inversion of one uniform each. The logarithm is what survives: at the published alpha
    most variates lie below the smallest float.
    """
    uniform = ((words(len(shape), seed, "partition-dirichlet", client) >> 11) + 0.5) / 2.0**53
    variates = gammaincinv(shape, uniform)
    # The leading term of the series of the distribution function, exact for small variates.
    small = (np.log(uniform) + gammaln(shape + 1)) / shape
    large = np.log(np.maximum(variates, 1e-300))
    return np.asarray(np.where(variates > 1e-9, large, small), dtype=np.float64)


def _fill(wanted: int, log_q: NDArray[np.float64], stock: NDArray[np.int64]) -> NDArray[np.int64]:
    """(C,) counts that add up to `wanted`, in proportions q as far as the stock allows."""
    counts = np.zeros_like(stock)
    while (missing := wanted - int(counts.sum())) > 0:
        left = stock - counts
        usable = np.where(left > 0, log_q, -np.inf)
        q = np.exp(usable - usable.max())
        counts += np.minimum(_round_to_total(missing * q / q.sum(), missing), left)
    return counts


def _round_to_total(values: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Integers next to `values` that add up to `total`, by largest remainder."""
    floor = np.floor(values).astype(np.int64)
    most = np.argsort(floor - values, kind="stable")
    floor[most[: total - int(floor.sum())]] += 1
    return floor
