from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.partition import label_histogram, partition
from common.errors import DataError
from common.sections import DataConfig
from prism.plot import plot_partition

LABELS = np.repeat(np.arange(10, dtype=np.int64), 60)


def config(kind: str, clients: int = 10, **options: float) -> DataConfig:
    return DataConfig.model_validate({"partition": kind, "clients": clients, **options})


@st.composite
def cuts(draw: st.DrawFn) -> tuple[np.ndarray, DataConfig, int]:
    classes = draw(st.integers(1, 5))
    shares = draw(st.lists(st.integers(6, 40), min_size=classes, max_size=classes))
    labels = np.repeat(np.arange(classes), shares).astype(np.int64)
    order = draw(st.randoms(use_true_random=False))
    shuffled = labels.tolist()
    order.shuffle(shuffled)
    data = DataConfig(
        partition=draw(st.sampled_from(["iid", "shards", "dirichlet", "attribute"])),
        clients=draw(st.integers(classes, 6)),
        shards_per_client=draw(st.integers(1, 1)),
        dirichlet_alpha=draw(st.floats(0.001, 50)),
    )
    return np.array(shuffled), data, draw(st.integers(0, 2**40))


@settings(max_examples=150, deadline=None)
@given(cuts())
def test_parts_are_disjoint_inside_the_set_not_empty_and_repeatable(
    cut: tuple[np.ndarray, DataConfig, int],
) -> None:
    labels, data, seed = cut
    parts = partition(labels, data, seed)
    assert len(parts) == data.clients
    assert all(len(part) and part.dtype == np.int64 for part in parts)
    given_out = np.concatenate(parts)
    assert len(np.unique(given_out)) == len(given_out)
    assert given_out.min() >= 0
    assert given_out.max() < len(labels)
    if data.partition == "dirichlet":
        assert {len(part) for part in parts} == {len(labels) // data.clients}
    else:
        assert len(given_out) == len(labels)
    if data.partition == "attribute":
        assert all(len(np.unique(labels[part])) == 1 for part in parts)
    again = partition(labels, data, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("kind", ["iid", "shards", "dirichlet", "attribute"])
def test_another_seed_cuts_otherwise(kind: str) -> None:
    one, two = (partition(LABELS, config(kind, 20, shards_per_client=2), seed) for seed in (1, 2))
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_known_answers() -> None:
    """What other machines must cut as well."""
    got = {
        kind: [int(part @ np.arange(1, len(part) + 1)) for part in partition(LABELS, data, 7)]
        for kind, data in {
            "iid": config("iid", 3),
            "shards": config("shards", 3),
            "dirichlet": config("dirichlet", 3, dirichlet_alpha=0.5),
            "attribute": config("attribute", 12),
        }.items()
    }
    assert got == {
        "iid": [7944524, 7800848, 8292815],
        "shards": [9181022, 8112556, 6082949],
        "dirichlet": [10311553, 7055446, 5485909],
        "attribute": [
            19465,
            16829,
            46599,
            45512,
            291580,
            401380,
            511180,
            620980,
            730780,
            840580,
            950380,
            1060180,
        ],
    }


def test_shards_hold_few_classes_of_equal_size() -> None:
    histogram = label_histogram(partition(LABELS, config("shards"), 3), LABELS)
    assert (histogram.sum(axis=1) == 60).all()
    assert ((histogram > 0).sum(axis=1) <= 4).all()


def test_dirichlet_follows_its_concentration() -> None:
    def classes_held(alpha: float) -> float:
        data = config("dirichlet", dirichlet_alpha=alpha)
        histograms = [label_histogram(partition(LABELS, data, s), LABELS) for s in range(10)]
        return float(np.mean([(h > 0).sum(axis=1).mean() for h in histograms]))

    assert classes_held(0.005) < 3 < classes_held(0.5) < 8 < classes_held(100.0)


def test_dirichlet_has_the_moments_of_its_distribution() -> None:
    """The first client draws from the full stock, so its shares are Dirichlet's own."""
    labels = np.repeat(np.arange(4, dtype=np.int64), 5000)
    data = config("dirichlet", 20, dirichlet_alpha=2.0)
    shares = np.array(
        [label_histogram(partition(labels, data, s)[:1], labels)[0] / 1000 for s in range(300)]
    )
    assert np.allclose(shares.mean(axis=0), 0.25, atol=0.03)
    assert np.allclose(shares.var(axis=0), 0.25 * 0.75 / 9, rtol=0.3)


def test_attribute_gives_each_value_its_share_of_the_clients() -> None:
    labels = np.array([0] * 580 + [1] * 420, dtype=np.int64)
    parts = partition(labels, config("attribute"), 1)
    histogram = label_histogram(parts, labels)
    assert ((histogram > 0).sum(axis=1) == 1).all()
    assert (histogram[:, 1] > 0).sum() == 4


def test_iid_needs_no_labels() -> None:
    assert [len(part) for part in partition(10, config("iid", 3), 1)] == [4, 3, 3]


@pytest.mark.parametrize(
    ("labels", "data", "message"),
    [
        (2, config("iid", 3), "2 images cannot be split among 3 clients"),
        (100, config("shards", 3), "needs labels"),
        (LABELS[:30], config("shards", 10), "10 x 4 shards"),
        (LABELS, config("attribute", 9), "10 label values"),
        (np.array([0] * 9 + [1]), config("dirichlet", 11), "cannot be split"),
        (np.array([], dtype=np.int64), config("dirichlet", 1), "cannot be split"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    labels: np.ndarray | int, data: DataConfig, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        partition(labels, data, 1)


def test_plot_is_written(tmp_path: Path) -> None:
    histogram = label_histogram(partition(LABELS, config("dirichlet"), 1), LABELS, classes=11)
    assert histogram.shape == (10, 11) and not histogram[:, 10].any()
    names = [f"${label} \\%" for label in range(11)]
    plot_partition(histogram, names, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="cannot write"):
        plot_partition(histogram, names, tmp_path / "missing" / "out.png")
    with pytest.raises(DataError, match="cannot write"):
        plot_partition(histogram, names, tmp_path / "out.nonsense")
