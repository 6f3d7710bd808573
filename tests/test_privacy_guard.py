"""The guard: which configs a client accepts, and that each release is made once and recorded."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support_privacy import CPU, ENCODER, IMAGES, TINY, config, local_images, released

from client.ledger import Ledger, total_epsilon
from client.loss import Moments
from client.mechanisms import planned_epsilon
from client.methods import make_trainer
from client.privacy_guard import Guard
from common.accounting import compose, gaussian_epsilon, gaussian_sigma
from common.config import parse_config
from common.downlink import initial_state
from common.errors import ConfigError, PrivacyError, StorageError
from prism.commands.privacy import privacy as privacy_command

pytestmark = pytest.mark.usefixtures("one_thread")


def test_config_mistakes_are_one_line() -> None:
    for change, says in (
        ("privacy.seed=1", "there is no seed"),
        ("privacy.require=true", "needs a privacy.mechanism"),
        ("privacy.epsilon=0", "privacy.epsilon"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            parse_config(TINY, [change])
        assert "\n" not in str(caught.value)


def test_training_refuses_raw_moments_under_the_mechanism(tmp_path: Path) -> None:
    raw = Moments(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(PrivacyError):
        make_trainer(config(), ENCODER, raw, CPU)
    result = make_trainer(config(), ENCODER, released(tmp_path, config()), CPU).train(
        initial_state(config()), "a"
    )
    assert np.isfinite(result.loss)


def test_a_release_is_made_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = released(tmp_path, config())
    with caplog.at_level(logging.INFO):
        again = released(tmp_path, config("moments", "seed=2", "rounds=9"))
    assert "nothing is drawn" in caplog.text
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.variance, again.variance)
    (entry,) = Ledger(tmp_path).entries()
    assert (entry.unit, entry.relation, entry.n) == ("record", "replace-one, n public", 60)
    assert entry.encoder["digest"] == ENCODER.digest().hex()
    assert (entry.encoder["layers"], entry.encoder["pool"]) == ([0, 1, 2, 3], 2)
    assert (entry.epsilon, entry.delta) == (10, 1e-5)
    # Nothing but the release and its record is on the disk.
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == ["ledger.head", "ledger.jsonl", "release"]


def test_further_releases_add_up_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    released(tmp_path, config(epsilon=1.0))
    released(tmp_path, config(epsilon=2.0))
    released(tmp_path, config(epsilon=2.0), IMAGES[:50])
    entries = Ledger(tmp_path).entries()
    expected = gaussian_epsilon(
        compose(1 / gaussian_sigma(epsilon, 1e-5) for epsilon in (1, 2, 2)), 1e-5
    )
    assert total_epsilon(entries, 1e-5) == pytest.approx(expected)
    assert f"release 3 in this ledger: they add up, to epsilon {expected:.4g}" in caplog.text
    with pytest.raises(PrivacyError, match=r"3 releases .* --max-epsilon here is 3"):
        released(tmp_path, config(epsilon=1.5), max_epsilon=3.0)
    assert len(Ledger(tmp_path).entries()) == 3


def test_a_weaker_config_is_refused(tmp_path: Path) -> None:
    for run, says in (
        (config("none"), "no privacy mechanism, and --max-epsilon here is 5"),
        (config(), '"moments" with epsilon 10 over the run'),
        (config("mask-noise", epsilon=3.0), '"mask-noise" with epsilon 6.'),
    ):
        with pytest.raises(PrivacyError, match=says):
            Guard(tmp_path, 5.0).agree(run)
    Guard(tmp_path, 5.0).agree(config(epsilon=5.0))
    released(tmp_path, config(epsilon=5.0), max_epsilon=5.0)


@pytest.mark.parametrize("mechanism", ["moments", "mask-noise"])
def test_a_mechanism_needs_a_ledger(mechanism: str) -> None:
    with pytest.raises(PrivacyError, match="needs --state DIR"):
        Guard(None).agree(config(mechanism))
    Guard(None).agree(config("none"))


def test_a_run_without_mechanism_ends_the_guarantee(tmp_path: Path) -> None:
    released(tmp_path, config())
    released(tmp_path, config("none"))
    released(tmp_path, config("none"))
    entries = Ledger(tmp_path).entries()
    assert [entry.mechanism for entry in entries] == ["moments", "none"]
    assert total_epsilon(entries, 1e-5) == math.inf


def test_mask_noise_reaches_theta_and_is_recorded(tmp_path: Path) -> None:
    run = config("mask-noise", "model.width=2", "model.latent=8", epsilon=10.0)
    guard = Guard(tmp_path)
    guard.agree(run)
    guard.moments(run, ENCODER, local_images(run), CPU)
    start = initial_state(run)
    trained = np.zeros_like(start.scores)
    noisy = [guard.values(run, start, trained) for _ in range(2)]
    assert (noisy[0] != noisy[1]).mean() > 0.3
    entries = Ledger(tmp_path).entries()
    assert [entry.round for entry in entries] == [0, 0]
    assert entries[0].features == start.dimension
    assert total_epsilon(entries, 1e-5) > 15
    assert planned_epsilon(run) == pytest.approx(gaussian_epsilon(4, 1e-5), rel=1e-3)

    assert guard.reportable(run, 0.5) is None
    guard.check_report(run, None)
    with pytest.raises(PrivacyError, match="it stays here"):
        guard.check_report(run, 0.5)


def test_a_deleted_ledger_is_missed(tmp_path: Path) -> None:
    released(tmp_path, config())
    for name in ("ledger.jsonl", "ledger.head"):
        (tmp_path / name).unlink()
    with pytest.raises(StorageError, match="does not know release-"):
        released(tmp_path, config())


def test_a_forged_release_is_refused_and_a_lost_one_counts(tmp_path: Path) -> None:
    released(tmp_path, config())
    (path,) = tmp_path.glob("release-*.pt")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(StorageError, match="not what the ledger says"):
        released(tmp_path, config())
    path.unlink()
    released(tmp_path, config())
    assert len(Ledger(tmp_path).entries()) == 2


def test_prism_privacy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(2):
        (tmp_path / "clients" / str(index)).mkdir(parents=True)
    protected, plain = (tmp_path / "clients" / str(i) for i in range(2))
    released(protected, config())
    privacy_command(tmp_path)
    said = capsys.readouterr().out
    assert (
        "Record-level (10, 1e-05)-differential privacy, replace-one, n public, entire run" in said
    )
    assert "Not covered:" in said
    assert "No formal privacy guarantee: nothing was recorded" in said
    assert Ledger(protected).entries()[0].data not in said  # type: ignore[operator]

    released(plain, config("none"))
    privacy_command(tmp_path, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["epsilon"] == pytest.approx(10)
    assert lines[1]["epsilon"] is None

    released(protected, config(epsilon=1.0))
    released(protected, config("none"))
    privacy_command(protected)
    assert "No formal privacy guarantee: at least one run" in capsys.readouterr().out
    (protected / "ledger.head").write_text("0")
    with pytest.raises(SystemExit, match="tampered"):
        privacy_command(protected)
    with pytest.raises(SystemExit, match="neither a client's --state"):
        privacy_command(protected / "nowhere")
