import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from common.data import load_images, open_source
from common.errors import DataError
from common.quality import Evaluator, Quality
from common.quality.inception import load_inception
from common.quality.lenet import Lenet, train_lenet
from common.quality.metrics import frechet_from_moments, moments, neighbourhood

Array = np.ndarray


def digits(size: int = 16) -> tuple[torch.Tensor, Array]:
    source = open_source("digits")
    assert source.labels is not None
    return load_images(source, np.arange(len(source)), size, 1), source.labels


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lenet")


@pytest.fixture(scope="module")
def judge(cache: Path) -> Evaluator:
    images, labels = digits()
    return Evaluator(images, labels, "lenet", cache=cache)


def evaluate(
    generated: torch.Tensor,
    real: torch.Tensor,
    labels: Array | None = None,
    features: str = "small",
    **options: Any,
) -> Quality:
    return Evaluator(real, labels, features, **options).evaluate(generated)


def frechet(a: Array, b: Array) -> float:
    return frechet_from_moments(*moments(a), *moments(b))


def noise(n: int = 300, size: int = 16, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (n, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def clouds(n: int, m: int, dimension: int, rank: int, shift: float) -> tuple[Array, Array]:
    rng = np.random.default_rng(n)
    maps = rng.normal(size=(2, rank, dimension))
    real = rng.normal(size=(n, rank)) @ maps[0]
    other = rng.normal(size=(m, rank)) @ (maps[0] + 0.3 * maps[1]) + shift
    return np.maximum(real, 0), np.maximum(other, 0)


def naive_frechet(a: Array, b: Array) -> float:
    # The usual offset: SciPy's root does not take singular matrices.
    offset = 1e-6 * np.eye(a.shape[1])
    cov_a, cov_b = np.cov(a.T) + offset, np.cov(b.T) + offset
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real))


def naive_neighbourhood(real: Array, fake: Array, k: int) -> list[float]:
    def radius(points: Array, i: int) -> float:
        others = [np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i]
        return float(sorted(others)[k - 1])

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(fake, i) for i in range(len(fake))]
    near = np.array([[np.linalg.norm(r - f) for f in fake] for r in real])
    in_real = np.array([[d < r for d in row] for row, r in zip(near, real_radii, strict=True)])
    in_fake = np.array([[d < r for d, r in zip(row, fake_radii, strict=True)] for row in near])
    return [
        in_real.any(axis=0).mean(),
        in_fake.any(axis=1).mean(),
        in_real.sum(axis=0).mean() / k,
        (near.min(axis=1) < real_radii).mean(),
    ]


@pytest.mark.parametrize(
    ("n", "m", "dimension", "shift"), [(400, 300, 20, 0.0), (500, 500, 8, 0.7), (90, 70, 3, 2.0)]
)
def test_frechet_agrees_with_the_naive_formula(
    n: int, m: int, dimension: int, shift: float
) -> None:
    real, fake = clouds(n, m, dimension, dimension, shift)
    expected = naive_frechet(real, fake)
    assert frechet(real, fake) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_frechet_where_it_is_known_in_closed_form() -> None:
    a = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert frechet(a, a + np.array([3, 4])) == pytest.approx(25)
    # Covariances c I and 4 c I with c = 2/3: the trace term is 2 c (1 - 2)^2.
    assert frechet(a, 2 * a) == pytest.approx(4 / 3)


@pytest.mark.parametrize("samples", [10, 60])
def test_frechet_of_singular_covariances(samples: int) -> None:
    real, _ = clouds(samples, 10, 100, 5, 0.0)
    assert frechet(real, real) == pytest.approx(0, abs=1e-4 * np.trace(np.cov(real.T)))
    assert frechet(real, real + 1) == pytest.approx(100, rel=1e-3)
    assert np.isfinite(frechet(np.zeros((9, 4)), np.ones((9, 4))))


@pytest.mark.parametrize(("n", "m", "shift"), [(70, 60, 0.0), (60, 70, 0.8), (40, 40, 30.0)])
def test_neighbourhood_agrees_with_brute_force(n: int, m: int, shift: float) -> None:
    real, fake = clouds(n, m, 6, 6, shift)
    got = neighbourhood(real, fake, k=5)
    expected = naive_neighbourhood(real, fake, 5)
    assert list(vars(got).values()) == pytest.approx(expected, abs=1e-3)


def test_neighbourhood_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = clouds(90, 80, 6, 6, 0.5)
    whole = neighbourhood(real, fake)
    monkeypatch.setattr("common.quality.metrics._BLOCK", 7)
    assert neighbourhood(real, fake) == whole


def test_features_of_the_evaluator_agree_with_the_reference(judge: Evaluator, cache: Path) -> None:
    """The whole path, from images to figures, against naive code on the same features."""
    images, labels = digits()
    generated = (images[:200].float() * 0.7).to(torch.uint8)
    quality = judge.evaluate(generated)
    network = train_lenet(images, labels, 1, cache)
    real, fake = (
        network.features(x.float() / 127.5 - 1).double().numpy() for x in (images, generated)
    )
    assert quality.distance == pytest.approx(naive_frechet(real, fake), rel=1e-3)
    assert quality.distance_name == "FD (lenet)"
    assert (quality.real, quality.generated) == (1498, 200)


def test_lenet_tells_digits_from_noise(judge: Evaluator) -> None:
    images, labels = digits()
    same, other = judge.evaluate(images), judge.evaluate(noise())
    assert same.distance < 1e-6 * other.distance
    assert same.classified is not None
    assert same.classified.classifier_accuracy > 0.95
    assert same.classified.classes_covered == 10
    assert same.classified.confidence > 0.95
    assert same.neighbourhood.coverage == 1
    assert other.neighbourhood.coverage < 0.1
    one_class = judge.evaluate(images[torch.from_numpy(labels) == 3]).classified
    assert one_class is not None
    assert one_class.classes_covered == 1
    assert one_class.shares[3] > 0.95
    flat = same.as_dict()
    assert flat["FD (lenet)"] == same.distance
    assert {"precision", "recall", "density", "coverage", "classes_covered"} <= flat.keys()


def test_lenet_says_which_images_are_read_as_intended(judge: Evaluator) -> None:
    images, labels = digits()
    quality = judge.evaluate(images, labels)
    assert quality.intended is not None
    assert quality.intended.share > 0.95
    assert quality.by_class is not None
    assert quality.by_class.distances == pytest.approx([0] * 10, abs=1e-3)
    swapped = labels.copy()
    swapped[labels == 3], swapped[labels == 5] = 5, 3
    other = judge.evaluate(images, swapped)
    assert other.distance == quality.distance, "of all images, whatever they were meant as"
    assert other.intended is not None
    assert other.by_class is not None
    by_class, distances = other.intended.by_class, other.by_class.distances
    assert distances is not None
    for which in range(10):
        share, distance = by_class[which], distances[which]
        assert share is not None
        assert distance is not None
        assert (share < 0.05, distance > 1) == (which in (3, 5), which in (3, 5))
    flat = json.loads(json.dumps(other.as_dict()))
    assert flat["FD (lenet) by class"] == list(distances)
    assert flat["FD (lenet) by class, worst"] == max(flat["FD (lenet) by class"])
    assert flat["FD (lenet) by class, mean"] == pytest.approx(np.mean(distances))
    assert flat["read_as_intended"] == pytest.approx(np.average(by_class, weights=bins(swapped)))
    assert flat["KID (lenet)"] == other.kernel.mean
    assert flat["KID (lenet), standard error"] > 0
    lone = judge.evaluate(images[:100], np.zeros(100, np.int64))
    assert lone.intended is not None
    assert lone.intended.by_class[1:] == (None,) * 9
    assert judge.evaluate(images[:100]).intended is None


def bins(labels: Array) -> Array:
    return np.bincount(labels, minlength=10)


def test_classes_are_drawn_in_the_shares_of_the_real_images(judge: Evaluator) -> None:
    _, labels = digits()
    for count in (37, 1498, 5000):
        drawn = judge.classes_to_draw(count, range(10))
        assert np.abs(bins(drawn) - bins(labels) * count / 1498).max() <= 1
        assert (np.diff(drawn) < 0).any(), "not class after class"
    assert set(judge.classes_to_draw(200, (2, 7))) == {2, 7}
    for other in (judge, Evaluator(noise(30), None, "small")):
        with pytest.raises(DataError, match="none of the classes to draw"):
            other.classes_to_draw(200, (11,))


@pytest.mark.parametrize(
    ("intended", "message"),
    [
        (np.zeros(29, np.int64), r"30 generated images with intended classes \(29,\)"),
        (np.full(30, 10), "must be 0 to 9"),
        (np.full(30, -1), "must be 0 to 9"),
    ],
)
def test_intended_classes_that_do_not_fit(judge: Evaluator, intended: Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        judge.evaluate(noise(30), intended)
    with pytest.raises(DataError, match="need labelled real images"):
        Evaluator(noise(30), None, "small").evaluate(noise(30), np.zeros(30, np.int64))


def test_lenet_is_kept_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.quality.lenet._IMAGES_SEEN", 500)
    images, labels = digits()
    images, labels = images[:60], labels[:60]
    steps: list[tuple[int, int]] = []

    def train() -> Lenet:
        steps.clear()
        return train_lenet(images, labels, 1, tmp_path, lambda *at: steps.append(at))

    trained = train()
    assert steps[-1][0] == steps[-1][1] == len(steps)
    again = train()
    assert not steps
    assert torch.equal(trained.fc3.weight, again.fc3.weight)
    assert trained.accuracy == again.accuracy
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(b"damaged")
    assert torch.equal(train().fc3.weight, trained.fc3.weight), "trained anew, and equally"
    assert steps
    train_lenet(images, labels, 2, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_small_features_need_no_labels() -> None:
    images, _ = digits(32)
    quality = evaluate(images[:200], images[200:500], features="small")
    far = evaluate(noise(200, 32), images[200:500], features="small")
    assert quality.distance_name == "FD (small)"
    assert quality.classified is None
    assert quality.distance < far.distance / 10


@pytest.mark.parametrize(
    ("features", "labelled", "message"),
    [
        ("pixels", True, "known are lenet, small, inception"),
        ("lenet", False, "need labelled images"),
        ("lenet", True, "cannot train the lenet classifier"),
    ],
)
def test_features_that_cannot_be_had(features: str, labelled: bool, message: str) -> None:
    labels = np.zeros(30, dtype=np.int64) if labelled else None
    with pytest.raises(DataError, match=message):
        evaluate(noise(30), noise(30), labels, features)


def test_inception_without_its_weights(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not exist"):
        load_inception(torch.device("cpu"), tmp_path / "missing.pth")


def test_inception_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(DataError, match="pip install torch-fidelity"):
        evaluate(noise(30), noise(30), features="inception")


def test_images_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="5 real images are too few"):
        evaluate(noise(30), noise(5))
    with pytest.raises(DataError, match="5 generated images are too few"):
        evaluate(noise(5), noise(30))
    with pytest.raises(DataError, match="generated images are"):
        evaluate(noise(30, channels=3), noise(30))
    with pytest.raises(DataError, match="must be uint8"):
        evaluate(noise(30).float(), noise(30))
    with pytest.raises(DataError, match="more than 5 images"):
        neighbourhood(np.zeros((5, 2)), np.zeros((9, 2)))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees() -> None:
    images, _ = digits(32)
    cpu = evaluate(noise(50, 32), images[:200])
    cuda = evaluate(noise(50, 32), images[:200], device="cuda")
    assert cuda.distance == pytest.approx(cpu.distance, rel=1e-2)
