"""FedPM and FedAvg: their aggregation against plain NumPy, and whole runs of every method."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import tiny_config, whole_run

from benchmarks.simulate import simulate
from client.fedavg import FedAvgTrainer
from client.local_images import LocalImages, local_moments
from client.methods import make_trainer
from client.update import encode_update, update_bits
from common.codecs import mask_codec, weight_codec
from common.config import RunConfig
from common.data import open_source
from common.downlink import StateStep, apply_steps, exact_step, initial_state, replay_step
from common.encoders import load_encoder
from common.errors import PayloadError
from common.layout import codec_of, mask_context, update_layout
from common.masks import pack, unpack
from common.model.architecture import Architecture
from common.model.export import build_model, load_model
from common.model.frozen import frozen_weights
from common.state import THETA_MAX, THETA_MIN, GlobalState, logit, sigma
from server.aggregate import Closed
from server.broadcast import Broadcast
from server.methods import make_aggregator

CPU = torch.device("cpu")
FEDAVG = tiny_config(method="fedavg", model={"width": 2, "latent": 8})
FEDPM = tiny_config(method="fedpm", model={"width": 2, "latent": 8})


def close(config: RunConfig, state: GlobalState, updates: list[bytes], order: Any = None) -> Closed:
    aggregator = make_aggregator(config, state, len(updates))
    for rank in range(len(updates)) if order is None else order:
        aggregator.fold(aggregator.decode([updates[rank]], rank))
    return aggregator.close()


def trainer_of(config: RunConfig) -> Any:
    encoder = load_encoder("small", layers=(3,), pool=1)
    images = LocalImages.of(config, open_source("digits"), np.arange(40))
    small = config.model_copy(
        update={"train": config.train.model_copy(update={"local_steps": 2, "batch_size": 8})}
    )
    return make_trainer(small, encoder, local_moments(encoder, images, CPU), CPU)


@pytest.mark.parametrize("codec", ["raw", "flips"])
def test_fedpm_takes_the_mode_of_a_beta_posterior(codec: str) -> None:
    config = tiny_config(method="fedpm", model={"width": 2, "latent": 8}, codec={"up": codec})
    state = initial_state(config)
    (segment,) = update_layout(config)
    rng = np.random.default_rng(0)
    clients, updates, masks = 5, [], []
    for rank in range(clients):
        context = mask_context(config, state, segment, rank, clients)
        mask = mask_codec(codec).sample(sigma(state.scores), context, rng)
        masks.append(unpack(mask))
        updates.append(mask_codec(codec).encode(mask, context))
    closed = close(config, state, updates)
    ones = np.sum(masks, axis=0)
    a, b = 1.0 + ones, 1.0 + clients - ones
    mode = np.clip(np.floor((a - 1) / (a + b - 2) * 65536 + 0.5), THETA_MIN, THETA_MAX)
    assert np.array_equal(closed.state.scores, logit(mode.astype(np.uint16)))
    assert (closed.lam, closed.clients) == (None, clients)
    assert closed.replay is not None
    step = exact_step(state, closed.replay.counts, closed.replay.lam)
    assert replay_step(config, state, step.payload).digest() == closed.state.digest()


def test_fedpm_with_raw_masks_is_prism_dagger() -> None:
    dagger = tiny_config(mada={"enabled": False}, model={"width": 2, "latent": 8})
    state = initial_state(FEDPM)
    rng = np.random.default_rng(0)
    d = state.dimension
    updates = [pack(rng.integers(0, 2, d, dtype=np.uint8)).tobytes() for _ in range(3)]
    ours, theirs = close(FEDPM, state, updates), close(dagger, state, updates)
    assert ours.state.digest() == theirs.state.digest()


def weights_of(state: GlobalState, clients: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    scales = rng.choice([1e-6, 1.0, 1e3], (clients, state.dimension))
    return list((rng.normal(size=scales.shape) * scales).astype(np.float32))


def test_fedavg_takes_the_mean_whatever_the_order() -> None:
    state = initial_state(FEDAVG)
    weights = weights_of(state, 7)
    updates = [weight_codec("float32").encode(w) for w in weights]
    closed = close(FEDAVG, state, updates)
    expected = np.mean(np.array(weights, dtype=np.float64), axis=0)
    np.testing.assert_allclose(closed.state.weights, expected, rtol=1e-6, atol=1e-12)
    assert (closed.state.round, closed.lam, closed.clients) == (1, None, 7)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(7)
        assert close(FEDAVG, state, updates, order).state.digest() == closed.state.digest()


def test_fedavg_refuses_what_it_cannot_sum() -> None:
    state = initial_state(FEDAVG)
    aggregator = make_aggregator(FEDAVG, state, 3)
    largest = np.float32(2.0**22 / 3)
    for value, message in [(1e20, "1e[+]20"), (np.nan, "finite"), (-np.inf, "finite")]:
        weights = np.full(state.dimension, value, dtype=np.float32)
        with pytest.raises(PayloadError, match=message):
            aggregator.decode([weights.tobytes()], 0)
    with pytest.raises(PayloadError, match="payload of 3 bytes"):
        aggregator.decode([b"abc"], 0)
    weights = np.full(state.dimension, np.nextafter(largest, np.float32(0)), dtype=np.float32)
    for rank in range(3):
        aggregator.fold(aggregator.decode([weights.tobytes()], rank))
    assert np.array_equal(aggregator.close().state.weights, weights)


def test_fedavg_starts_from_the_frozen_weights_and_travels_whole() -> None:
    state = initial_state(FEDAVG)
    frozen = frozen_weights(Architecture.of(FEDAVG), FEDAVG.seed)
    assert np.array_equal(state.weights, frozen)
    broadcast = Broadcast(FEDAVG, state)
    updates = [weight_codec("float32").encode(w) for w in weights_of(state, 2)]
    published = broadcast.publish(close(FEDAVG, state, updates))
    steps = broadcast.steps((0, state.digest()))
    assert sum(len(step.payload) for step in steps) == 4 * state.dimension
    assert apply_steps(FEDAVG, state, steps).digest() == published.digest()
    with pytest.raises(PayloadError, match="keyframe"):
        apply_steps(FEDAVG, state, [StateStep(steps[0].codec, 1, b"short")])


def test_fedavg_trains_weights_and_survives_a_restart() -> None:
    state = initial_state(FEDAVG)
    steady = trainer_of(FEDAVG)
    assert isinstance(steady, FedAvgTrainer)
    first = steady.train(state, "a")
    assert first.values.dtype == np.float32
    assert not np.array_equal(first.values, state.weights)
    assert np.array_equal(first.values, trainer_of(FEDAVG).train(state, "a").values)
    saved = steady.state_dict()
    kept = {key: value.clone() if torch.is_tensor(value) else value for key, value in saved.items()}
    restarted = trainer_of(FEDAVG)
    restarted.load_state_dict(kept)
    second = restarted.train(state, "a")
    assert not np.array_equal(first.values, second.values)
    assert np.array_equal(first.values, trainer_of(FEDAVG).train(state, "a").values)


def test_an_update_of_weights() -> None:
    state = initial_state(FEDAVG)
    (segment,) = update_layout(FEDAVG)
    assert codec_of(segment) is weight_codec("float32")
    (payload,) = encode_update(FEDAVG, state, state.values, rank=0, cohort_size=1, client="a")
    assert payload == state.to_bytes()
    assert update_bits(FEDAVG, state, state.values) is None
    with pytest.raises(TypeError, match="not weights"):
        encode_update(FEDAVG, state, initial_state(FEDPM).values, rank=0, cohort_size=1, client="a")


@pytest.mark.parametrize("method", ["fedpm", "fedavg"])
def test_a_run_over_the_wire(method: str, tmp_path: Path) -> None:
    config = tiny_config(method=method, rounds=2)
    digest = asyncio.run(whole_run(config, tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["lambda"] for line in lines] == [None, None]
    assert all((line["entropy_bits"] is None) == (method == "fedavg") for line in lines)
    model = load_model(tmp_path / "model.prism")
    assert model.round == 2
    assert model.sample(2).shape == (2, 1, 16, 16)
    # Taken up again, a finished run has the state that it ended with.
    assert asyncio.run(whole_run(config, tmp_path / "again")) == digest


@pytest.mark.parametrize("method", ["prism", "fedpm", "fedavg"])
def test_a_simulated_run(method: str) -> None:
    config = tiny_config(
        method=method, rounds=2, data={"clients": 2}, train={"local_steps": 1, "batch_size": 4}
    )
    encoder = load_encoder("small", layers=(3,), pool=1)
    images = LocalImages.of(config, open_source("digits"), np.arange(20))
    rounds = list(simulate(config, encoder, [local_moments(encoder, images, CPU)] * 2, CPU))
    assert [r.state.round for r in rounds] == [1, 2]
    d = rounds[-1].state.dimension
    assert rounds[-1].up_bytes == 2 * (4 * d if method == "fedavg" else -(-d // 8))
    assert all((r.hamming is None) == (method == "fedavg") for r in rounds)
    assert build_model(config, rounds[-1].state).sample(1).shape == (1, 1, 16, 16)
