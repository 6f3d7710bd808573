"""The accuracy score: what it knows, what it asks a model for, what it hangs on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support import tiny_config

from common.data import ArraySource, load_images, open_source
from common.downlink import initial_state
from common.errors import ConfigError, DataError
from common.model.export import build_model
from common.quality import accuracy_score, score_model

Array = np.ndarray


def digits(train: bool = True) -> tuple[torch.Tensor, Array]:
    source = open_source("digits", train=train)
    assert source.labels is not None
    return load_images(source, np.arange(len(source)), 16, 1), source.labels


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less training than a measurement has."""
    monkeypatch.setattr("common.quality.lenet._IMAGES_SEEN", 3000)


def test_the_accuracy_score_of_real_images_is_high(brief: None) -> None:
    images, labels = (side[:750] for side in digits())
    test, truth = digits(train=False)
    steps: list[tuple[int, int]] = []
    score = accuracy_score(images, labels, test, truth, progress=lambda *at: steps.append(at))
    assert score > 0.85
    assert steps[-1][0] == steps[-1][1] == len(steps)
    wrong = np.random.default_rng(0).permutation(labels)
    assert accuracy_score(images, wrong, test, truth) < 0.3


def test_the_accuracy_score_hangs_on_its_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.quality.lenet._IMAGES_SEEN", 500)
    images, labels = digits()
    test, truth = digits(train=False)

    def score(seed: int) -> float:
        return accuracy_score(images[:200], labels[:200], test, truth, seed=seed)

    torch.manual_seed(1)
    first = score(1)
    torch.manual_seed(2)
    assert score(1) == first
    assert len({first, score(2), score(3)}) > 1


def test_a_class_that_is_never_drawn_is_never_right(brief: None) -> None:
    images, labels = digits()
    test, truth = digits(train=False)
    low, tested = torch.from_numpy(labels < 5), torch.from_numpy(truth >= 5)
    drawn, real = labels[labels < 5], truth[truth >= 5]
    assert accuracy_score(images[low], drawn, test[tested], real) == 0


def test_a_model_is_asked_for_equal_shares_and_tested_on_all_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.quality.accuracy.IMAGES", 203)
    monkeypatch.setattr("common.quality.lenet._IMAGES_SEEN", 500)
    config = tiny_config(model={"width": 1, "latent": 4})
    model = build_model(config, initial_state(config), unseen=(4,))
    test, truth = digits(train=False)
    classes = np.array([which for which in range(10) if which != 4])[np.arange(203) % 9]
    expected = accuracy_score(model.sample(203, 5, classes), classes, test, truth)
    source = open_source("digits", train=False)
    assert score_model(model, source, seed=5) == expected
    unlabelled = ArraySource("mine", np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(DataError, match="mine has no labels"):
        score_model(model, unlabelled)
    with pytest.raises(ConfigError, match="needs a model that draws classes"):
        score_model(dataclasses.replace(model, class_names=(), unseen=()), source)


def test_scores_of_images_that_do_not_fit() -> None:
    images, labels = digits()
    with pytest.raises(DataError, match="20 generated images with 19 labels"):
        accuracy_score(images[:20], labels[:19], images, labels)
    with pytest.raises(DataError, match="0 real images"):
        accuracy_score(images, labels, images[:0], labels[:0])
    with pytest.raises(DataError, match="generated images are"):
        accuracy_score(images[..., :8], labels, images, labels)
