"""The peers' arithmetic and bytes, with classes and without."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.measure import Setting
from benchmarks.peers import fedavg_gan, md_gan
from benchmarks.peers.networks import (
    AveragedGenerator,
    Labelled,
    Network,
    batches,
    client_images,
    discriminator,
    generator,
    generator_loss,
    noise_vectors,
    parameter_bytes,
    sample,
    taught_classes,
)
from common.config import RunConfig, parse_config
from common.data import open_source
from common.errors import ConfigError

CPU = torch.device("cpu")
TINY = (
    "rounds=2",
    "model.width=1",
    "model.latent=4",
    "model.image_size=16",
    "data.clients=3",
    "train.local_steps=2",
    "train.batch_size=4",
)
CLASSES = parse_config("", TINY)
UNLABELLED = parse_config("", [*TINY, "data.labels=ignore"])
BOTH = pytest.mark.parametrize("config", [CLASSES, UNLABELLED], ids=["classes", "unlabelled"])
PEERS = pytest.mark.parametrize("peer", [fedavg_gan, md_gan])


def setting_of(config: RunConfig) -> Setting:
    return Setting(config, None, "small", every=1, samples=20, accuracy_score=False)


def parts(config: RunConfig, count: int = 3) -> list[Labelled]:
    torch.manual_seed(0)
    images = [torch.rand(8, 1, 16, 16) * 2 - 1 for _ in range(count)]
    labels = torch.arange(8) if config.classes else None
    return [Labelled(x, labels) for x in images]


def some_labels(config: RunConfig, count: int) -> Tensor | None:
    return torch.arange(count) % len(config.classes) if config.classes else None


@pytest.mark.parametrize("labels", ["use", "ignore"])
@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_networks_fit_each_other(size: int, data: str, labels: str) -> None:
    changes = [f"model.image_size={size}", f"data.name={data}", f"data.labels={labels}"]
    config = parse_config("", ["model.width=2", *changes])
    chosen = some_labels(config, 3)
    images = generator(config)(torch.randn(3, config.model.latent, 1, 1), chosen)
    assert images.shape == (3, config.channels, size, size)
    assert images.abs().max() <= 1
    assert discriminator(config)(images, chosen).shape == (3, 1)
    assert not [buffer for net in (generator, discriminator) for buffer in net(config).buffers()]
    drawn = sample(generator(config), config, 7, labels=some_labels(config, 7))
    assert drawn.shape == (7, config.channels, size, size)


@pytest.mark.parametrize(("labels", "weights"), [("use", 447_425), ("ignore", 426_945)])
def test_the_generator_is_as_large_as_prisms(labels: str, weights: int) -> None:
    config = parse_config("", ["model.width=16", "data.name=mnist", f"data.labels={labels}"])
    assert parameter_bytes(generator(config)) == 4 * weights


def test_a_class_is_a_plane_of_ones_beside_the_input() -> None:
    x = torch.randn(2, 1, 3, 3)
    joined = Network(4, [nn.Identity()])(x, torch.tensor([2, 0]))
    assert joined.shape == (2, 5, 3, 3)
    assert torch.equal(joined[:, :1], x)
    assert joined[:, 1:].mean((2, 3)).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert torch.equal(Network(0, [nn.Identity()])(x), x)


def test_averages_are_means() -> None:
    networks = [nn.Linear(3, 2) for _ in range(4)]
    mean = fedavg_gan.average(networks)
    stacked = torch.stack([network.weight for network in networks])
    torch.testing.assert_close(mean["weight"], stacked.mean(0))
    assert list(mean) == ["weight", "bias"]


@pytest.mark.parametrize("share", [0, 1])
def test_a_peer_is_judged_by_the_average_of_its_rounds(share: int) -> None:
    config = parse_config("", [*TINY, f"output.average={share}"])
    torch.manual_seed(2)
    before, first, last = (generator(config) for _ in range(3))
    averaged = AveragedGenerator(config, before, learned=(1, 4))
    averaged.add(1, first)
    averaged.add(2, last)
    expected = generator(config)
    pairs = zip(expected.parameters(), first.parameters(), last.parameters(), strict=True)
    with torch.no_grad():
        for mean, early, late in pairs:
            mean.copy_((early + late) / 2 if share else late)
    labels = torch.tensor([1, 4, 1, 4, 1])
    ours = averaged.sample(5)
    difference = ours.int() - sample(expected, config, 5, labels=labels).int()
    assert difference.abs().max() <= 1
    assert torch.equal(ours, averaged.sample(5, labels=labels.numpy()))
    assert not torch.equal(ours, averaged.sample(5, labels=np.array([1, 1, 1, 1, 1])))
    assert not torch.equal(ours, averaged.sample(5, seed=1))


@PEERS
@BOTH
def test_peers_run_and_are_judged_by_the_classes_they_were_asked_for(
    peer: ModuleType, config: RunConfig
) -> None:
    first, second = peer.measure(setting_of(config))
    assert (first.line["rounds"], second.line["rounds"]) == (1, 2)
    assert second.line["up_bytes"] == 2 * first.line["up_bytes"] > 0
    assert second.line["FD (small)"] > 0
    assert ("fewest_of_a_class" in second.line) == bool(config.classes)
    assert second.grid.names == config.classes
    assert not torch.equal(first.images, second.images)
    again = list(peer.measure(setting_of(config)))[-1]
    assert torch.equal(again.images, second.images)


def test_peers_have_an_accuracy_score_after_the_last_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.quality.accuracy.IMAGES", 100)
    monkeypatch.setattr("common.quality.lenet._IMAGES_SEEN", 200)
    setting = dataclasses.replace(setting_of(CLASSES), accuracy_score=True)
    first, second = fedavg_gan.measure(setting)
    assert "accuracy_score" not in first.line
    assert 0 <= second.line["accuracy_score"] <= 1


@PEERS
def test_a_choice_of_masks_means_nothing_to_a_gan(peer: ModuleType) -> None:
    setting = dataclasses.replace(setting_of(CLASSES), masks="fresh")
    with pytest.raises(ConfigError, match="a GAN has no masks"):
        next(peer.measure(setting))


@BOTH
def test_fedavg_gan_moves_both_networks_both_ways(config: RunConfig) -> None:
    first, second = fedavg_gan.measure(setting_of(config))
    size = parameter_bytes(generator(config)) + parameter_bytes(discriminator(config))
    assert (first.line["up_bytes"], second.line["up_bytes"]) == (3 * size, 6 * size)
    assert second.line["down_bytes"] == 6 * size


def test_a_client_of_fedavg_gan_draws_the_classes_of_its_real_batches() -> None:
    """Its steps move the generator's weights of its own class, and of no other."""
    torch.manual_seed(1)
    (part,) = parts(CLASSES, 1)
    client = fedavg_gan.GanClient(CLASSES, part._replace(labels=torch.full((8,), 3)), 0, 2e-4)
    before = [network.state_dict() for network in client.networks]
    before = [{key: value.clone() for key, value in state.items()} for state in before]
    client.train(before)
    moved = client.networks[0].state_dict()["0.weight"] != before[0]["0.weight"]
    assert moved.any(dim=3).any(dim=2).any(dim=1).tolist() == [True] * 4 + [
        label == 3 for label in range(10)
    ]


@BOTH
def test_md_gan_feedback_is_the_chain_rule(config: RunConfig) -> None:
    """With one client, the server's gradient is that of one network on top of the other."""
    torch.manual_seed(1)
    federation = md_gan.MdGan(config, parts(config, 1), rate=0.0)
    kept = federation._noise.get_state()
    federation.iterate()
    noise = torch.Generator()
    noise.set_state(kept)
    z, labels = noise_vectors(config, 4, noise), some_labels(config, 4)
    gradients = [p.grad for p in federation.generator.parameters()]
    fake = Labelled(federation.generator(z, labels), labels)
    loss = generator_loss(federation._judges[0], fake)
    expected = torch.autograd.grad(loss, list(federation.generator.parameters()))
    for ours, whole in zip(gradients, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, whole, atol=1e-6, rtol=1e-4)


@BOTH
def test_md_gan_swaps_in_a_cycle_and_counts_it(config: RunConfig) -> None:
    torch.manual_seed(1)
    federation = md_gan.MdGan(config, parts(config), rate=2e-4)
    # Eight images in batches of four: every second iteration ends a pass.
    batch, judge = 4 * 16 * 16 * 4, parameter_bytes(discriminator(config))
    labels = 4 if config.classes else 0
    assert federation.iterate() == (3 * batch, 3 * (batch + labels))
    before = [j[0].weight.clone() for j in federation._judges]
    federation._swap()
    after = [j[0].weight for j in federation._judges]
    moved = [[torch.equal(a, b) for b in before] for a in after]
    assert not any(moved[i][i] for i in range(3))
    assert all(sum(row) == 1 for row in moved)
    assert federation.iterate() == (3 * (batch + judge), 3 * (batch + labels + judge))


@BOTH
def test_md_gan_sends_two_batches_where_there_are_two(config: RunConfig) -> None:
    federation = md_gan.MdGan(config, parts(config, 8), rate=2e-4)
    batch, labels = 4 * 16 * 16 * 4, 4 if config.classes else 0
    assert federation.iterate() == (8 * batch, 16 * (batch + labels))


def test_the_server_of_md_gan_draws_all_classes_in_turn() -> None:
    federation = md_gan.MdGan(CLASSES, parts(CLASSES), rate=2e-4)
    drawn = [federation._generate().labels for _ in range(4)]
    assert [labels.tolist() for labels in drawn if labels is not None] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]


@BOTH
def test_batches_are_of_the_clients_own_images(config: RunConfig) -> None:
    images = torch.arange(6).float().view(6, 1, 1, 1)
    labels = torch.arange(6) + 2 if config.classes else None
    drawn = batches(Labelled(images, labels), 50, torch.Generator().manual_seed(0))
    batch = next(drawn)
    assert set(batch.images.flatten().tolist()) == set(range(6))
    if batch.labels is None:
        assert not config.classes
    else:
        assert torch.equal(batch.labels, batch.images.flatten().long() + 2)


def test_clients_hold_the_images_that_prism_trains_on() -> None:
    config = parse_config("", [*TINY, "data.partition=shards", "data.min_class_size=60"])
    source = open_source("digits")
    held = client_images(config, source, CPU)
    counts = [torch.bincount(part.labels) for part in held if part.labels is not None]
    assert len(counts) == 3
    assert all(count == 0 or count >= 60 for of_client in counts for count in of_client.tolist())
    assert taught_classes(held) == tuple(
        label for label in range(10) if any(label < len(c) and c[label] for c in counts)
    )
    for labels in ("ignore", "cells"):
        config = parse_config("", [*TINY, "train.batch_size=64", f"data.labels={labels}"])
        unlabelled = client_images(config, source, CPU)
        assert sum(len(part.images) for part in unlabelled) == len(source)
        assert taught_classes(unlabelled) == ()
