"""The simulator is the system: the same config ends in the same state, model and bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from support import jsonl
from support_federation import CPU, TINY, Ended, federated, private_data

import client.loop
from benchmarks.poison import attacked
from benchmarks.simulate import client_moments, simulate
from client.loss import Kind, Moments
from client.privacy_guard import Guard
from client.update import encode_update
from common.config import RunConfig, parse_config
from common.data import open_source
from common.encoders import load_encoder
from common.errors import ConfigError
from common.model.export import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

RUNS: dict[str, list[str]] = {
    "raw masks and keyframes": ["codec.up=raw", "codec.down=keyframe", "mada.enabled=true"],
    "flips and error feedback, by class": [],
    "labels ignored": ["data.labels=ignore"],
    "cells of similar images": ["data.labels=cells"],
    "flips of half the coordinates, replayed": [
        "codec.coordinates_per_round=0.5",
        "codec.down=exact",
    ],
    "scores of the last layers": ["alpha=0.3"],
    "private moments, by class": ["privacy.mechanism=moments"],
    "private moments, labels ignored": ["privacy.mechanism=moments", "data.labels=ignore"],
    "weights": ["method=fedavg"],
    "FedPM": ["method=fedpm"],
    # Names are sorted as text, so client-10 comes before client-2.
    "eleven clients": ["data.clients=11", "rounds=2", "train.local_steps=1"],
}


def simulated(
    config: RunConfig,
    moments: Sequence[Moments],
    encode: Callable[..., tuple[bytes, ...]] = encode_update,
) -> Ended:
    """The same in one process, without a network."""
    encoder = load_encoder(config.encoder.name, config.encoder.layers, config.encoder.pool)
    rounds = list(simulate(config, encoder, moments, CPU, encode))
    return Ended(
        rounds[-1].state.digest().hex(),
        build_model(config, rounds[-1].source.state).parameters.tobytes(),
        rounds[-1].source.cells,
        sum(done.up_bytes for done in rounds),
        # Nobody fetches the last state.
        sum(done.down_bytes for done in rounds[:-1]) * len(moments),
    )


def moments_of(config: RunConfig, out: Path) -> list[Moments]:
    """What the clients train on; under a mechanism, what those of a run in `out` released."""
    encoder = load_encoder(config.encoder.name, config.encoder.layers, config.encoder.pool)
    if config.privacy.mechanism == "none":
        return client_moments(config, open_source("digits"), encoder, CPU)
    kept = []
    for index in range(config.data.clients):
        guard = Guard(out / "clients" / str(index))
        kept.append(
            private_data(config, index).measure(config, f"client-{index}", (0, 0), guard)[1]
        )
    return kept


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_simulated_run_ends_as_the_real_one(tmp_path: Path, changes: list[str]) -> None:
    config = parse_config(TINY, changes)
    real = asyncio.run(federated(config, tmp_path))
    assert simulated(config, moments_of(config, tmp_path)) == real


@pytest.mark.parametrize(
    ("labels", "kind", "noise"), [("use", Kind.WEIGHTED, 0.2), ("ignore", Kind.NORMALISED, 0.01)]
)
def test_private_moments_are_released_as_clients_release_them(
    labels: str, kind: Kind, noise: float
) -> None:
    """But for the noise, which comes from the operating system and is never the same."""
    changes = ["privacy.mechanism=moments", "privacy.epsilon=10000", f"data.labels={labels}"]
    config = parse_config(TINY, changes)
    encoder = load_encoder(config.encoder.name, config.encoder.layers, config.encoder.pool)
    source = open_source("digits")
    once, again = (client_moments(config, source, encoder, CPU) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert one.kind is other.kind is kind
        assert one.classes == other.classes
        assert not torch.equal(one.mean, other.mean)
        # Where a class is rare its moments are noisier, so all of them are looked at together.
        assert float((one.mean - other.mean).norm()) < noise * float(one.mean.norm())


@pytest.mark.parametrize("labels", ["use", "cells"])
def test_attackers_are_left_out_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: str
) -> None:
    config = parse_config(TINY, ["robust=trim", "data.clients=4", f"data.labels={labels}"])
    tampered = attacked("mixed", {"client-2"})
    monkeypatch.setattr(client.loop, "encode_update", tampered)
    real = asyncio.run(federated(config, tmp_path))
    assert simulated(config, moments_of(config, tmp_path), tampered) == real
    lines = jsonl(tmp_path / "metrics.jsonl")
    assert [line["left_out"] for line in lines] == [["client-2"]] * config.rounds


def test_a_share_of_the_clients_is_not_simulated() -> None:
    config = parse_config(TINY, ["round.participation=0.5"])
    with pytest.raises(ConfigError, match=r"every client takes part .* round.participation=1"):
        simulated(config, moments_of(config, Path()))
