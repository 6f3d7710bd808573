"""The guard where labels are used: labels are protected like images, and the release decides."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from support_privacy import CPU, ENCODER, IMAGES, LABELS, TINY, config, local_images, released

from benchmarks.simulate import client_moments, simulate
from client.ledger import Ledger
from client.loss import Kind
from client.methods import make_trainer
from client.privacy_guard import Guard
from common.config import RunConfig, parse_config
from common.data import ArraySource
from common.downlink import initial_state
from common.errors import PrivacyError, StorageError
from prism.commands.privacy import privacy as privacy_command

TWO = np.where(LABELS < 5, 3, 7)
"""Two classes, so that each of them has enough images."""

pytestmark = pytest.mark.usefixtures("one_thread")


def labelled(*changes: str, epsilon: float = 100.0) -> RunConfig:
    return config("moments", "data.labels=use", *changes, epsilon=epsilon)


def test_labels_are_used_under_the_mechanism_too() -> None:
    run = parse_config(TINY, ["privacy.mechanism=moments"])
    assert run.data.labels == "use"
    assert Kind.of(run) is Kind.WEIGHTED
    assert Kind.of(config()) is Kind.NORMALISED
    assert Kind.of(config("none")) is Kind.PLAIN


def test_a_release_of_classes_is_made_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = released(tmp_path, labelled(), labels=TWO)
    assert first.classes == (3, 7)
    assert first.kind is Kind.WEIGHTED
    with caplog.at_level(logging.INFO):
        again = released(tmp_path, labelled("seed=2", "rounds=9"), labels=TWO)
    assert "nothing is drawn" in caplog.text
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.variance, again.variance)
    assert (again.classes, again.scales) == (first.classes, first.scales)

    (entry,) = Ledger(tmp_path).entries()
    assert (entry.n, entry.classes, entry.features) == (60, 10, first.mean.shape[1])
    assert entry.scales is not None
    assert first.scales is not None
    assert entry.scales["first"] == list(first.scales.first)
    assert (len(entry.sensitivities), len(entry.sigmas)) == (1, 1)
    kept = torch.load(next(tmp_path.glob("release-*.pt")), weights_only=True)
    assert kept["released"].shape == (10, first.scales.length)
    assert bool((kept["released"] != 0).any(1).all())


def test_labels_are_part_of_what_was_released(tmp_path: Path) -> None:
    released(tmp_path, labelled(), labels=TWO)
    # One image, of another class: not the same release, nor where labels are ignored.
    other = TWO.copy()
    other[0] = 10 - other[0]
    released(tmp_path, labelled(), labels=other)
    released(tmp_path, config(epsilon=100.0))
    with pytest.raises(PrivacyError, match=r"3 releases .* --max-epsilon here is 150"):
        released(tmp_path, labelled(), IMAGES[:50], labels=TWO, max_epsilon=150.0)
    assert len({entry.data for entry in Ledger(tmp_path).entries()}) == 3


def test_true_counts_decide_nothing_and_are_not_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = labelled("data.min_class_size=20")
    labels = TWO.copy()
    labels[:] = 3
    labels[0] = 5
    labels[1:19] = 7
    images = local_images(run, labels=labels)
    assert len(images) == 60
    with caplog.at_level(logging.INFO):
        # 18 images are fewer than min_class_size, and well above the noise; one is not.
        assert released(tmp_path, run, labels=labels).classes == (3, 7)
    said = " ".join(caplog.messages)
    assert "left out" not in said
    assert not any(str(count) in said for count in (18, 41))


def test_a_release_that_shows_no_class_says_what_would_help(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with pytest.raises(PrivacyError, match=r"larger privacy\.epsilon") as caught:
            released(tmp_path, labelled(epsilon=0.1))
        assert "\n" not in str(caught.value)
    # It was drawn, so it counts, and is not drawn again.
    assert len(Ledger(tmp_path).entries()) == 1
    assert "drowns classes with less than 100% of the images" in caplog.text


def test_a_release_of_another_kind_is_no_release_of_classes(tmp_path: Path) -> None:
    moments = released(tmp_path, labelled(), labels=TWO)
    for run in (config(), config("none")):
        with pytest.raises(PrivacyError, match="other moments"):
            make_trainer(run, ENCODER, moments, CPU)
    (path,) = tmp_path.glob("release-*.pt")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StorageError, match="not what the ledger says"):
        released(tmp_path, labelled(), labels=TWO)


def test_training_and_the_report_go_by_the_release(tmp_path: Path) -> None:
    run = labelled()
    labels = TWO.copy()
    labels[0] = 1
    trainer = make_trainer(run, ENCODER, released(tmp_path, run, labels=labels), CPU)
    # What travels with updates; the class of one image is not among it.
    assert trainer.classes == (3, 7)
    assert np.isfinite(trainer.train(initial_state(run), "a").loss)


def test_simulated_clients_release_as_real_ones_do() -> None:
    run = labelled("data.clients=2", "rounds=1")
    source = ArraySource("test", IMAGES[:, 0].numpy(), TWO, run.classes)
    moments = client_moments(run, source, ENCODER, CPU)
    assert [real.kind for real in moments] == [Kind.WEIGHTED] * 2
    (done,) = simulate(run, ENCODER, moments, CPU)
    assert set(done.source.unseen) == set(range(10)) - {3, 7}


def test_an_older_ledger_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released(tmp_path, config())
    ledger = Ledger(tmp_path)
    (entry,) = ledger.entries()
    old = tmp_path / "old"
    old.mkdir()
    earlier = {k: v for k, v in vars(entry).items() if k not in ("classes", "scales")}
    monkeypatch.setattr("client.ledger.asdict", lambda _: earlier)
    Ledger(old).append(entry)
    monkeypatch.undo()
    raw = json.loads((old / "ledger.jsonl").read_text())
    assert "scales" not in raw
    assert Ledger(old).entries() == [entry]
    # And a release of that time is found.
    path = ledger.release_path(entry.release or "")
    (old / path.name).write_bytes(path.read_bytes())
    released(old, config())
    assert len(Ledger(old).entries()) == 1


def test_prism_privacy_names_what_was_released(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released(tmp_path, labelled(), labels=TWO)
    privacy_command(tmp_path)
    said = capsys.readouterr().out
    assert "Record-level (100, 1e-05)-differential privacy" in said
    assert "moments of all 10 classes, 1408 features (small" in said
    assert "which classes" not in said.split("Not covered:")[1]


def test_without_the_mechanism_counts_decide_as_before() -> None:
    labels = TWO.copy()
    labels[:1] = 1
    images = local_images(config("none", "data.min_class_size=2"), labels=labels)
    assert images.classes == (3, 7)
    Guard(None).agree(images.config)
