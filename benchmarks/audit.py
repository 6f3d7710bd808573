"""Audits of what the privacy mechanisms claim; exit code 1 if one fails.

    python -m benchmarks.audit [--epsilon E ...] [--trials N] [--json]

Attacks on single releases are in `benchmarks.attack`; here are those that need whole clients:
the ones below go through the client's own path, from its images to the bytes of its update.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from scipy.stats import norm
from torch import Tensor

from benchmarks.attack import CONFIDENCE, Finding, distinguish, one_run
from benchmarks.class_attack import distinguish_classes
from benchmarks.simulate import simulate
from client.class_release import release_classes
from client.ledger import Entry, Ledger
from client.local_data import PartitionChoice, PrivateData
from client.loss import Moments, real_moments
from client.mechanisms import calibrate_moments, features_of, release_moments
from client.methods import make_trainer
from client.privacy_guard import Guard
from client.update import encode_update, update_bits
from common.config import RunConfig, parse_config
from common.data import load_images, open_source
from common.downlink import initial_state
from common.encoders import load_encoder
from common.errors import PrismError, PrivacyError
from common.model.export import build_model
from common.sections import PrivacyConfig
from common.theory import figures

CPU = torch.device("cpu")
PARTS = 6
MEMBERS = 100
REFERENCE = 800
AXES = 300
"""Principal axes of the reference population that the membership attack looks along."""
TINY = """
rounds = 1
[model]
width = 2
image_size = 16
[encoder]
pool = 4
[train]
local_steps = 2
batch_size = 8
"""
UNLABELLED = ('data.labels="ignore"',)
LABELLED = ('data.partition="shards"', "data.shards_per_client=1", "encoder.pool=1")
"""Parts of one or two classes, so that some rise above the noise of 300 images at epsilon 1."""


def upload(config: RunConfig, part: int, state: Path, guard_type: type[Guard] = Guard) -> bytes:
    """What one client sends in round 0, figures included, by the client's own code.

    Args:
        config: the run.
        part: which part of the digits the client holds; 0 and 2 are equally many.
        state: its --state directory.
        guard_type: the guard; a broken one can be given.
    """
    private = PrivateData("digits", None, PartitionChoice(part, PARTS), CPU)
    guard = guard_type(state)
    guard.agree(config)
    encoder, moments = private.measure(config, "audit", (0, 0), guard)
    start = initial_state(config)
    trainer = make_trainer(config, encoder, moments, CPU)
    result = trainer.train(start, "audit")
    values = guard.values(config, start, result.values)
    payloads = encode_update(config, start, values, rank=0, cohort_size=1, client="audit")
    bits = figures(update_bits(config, start, values)).values()
    said = [guard.reportable(config, result.loss), trainer.classes, *bits]
    return b"".join(payloads) + repr(said).encode()


def non_interference(config: RunConfig, guard_type: type[Guard] = Guard) -> Finding:
    """Give a client another's release: from other images it must send the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, alone = (Path(folder, name) for name in ("ours", "theirs", "alone"))
        for path in (ours, theirs, alone):
            path.mkdir()
        first = upload(config, 0, ours, guard_type)
        # Only the fingerprint of its own images makes a client take a release as its own.
        upload(config, 2, alone, guard_type)
        (mine,), (other,) = Ledger(ours).entries(), Ledger(alone).entries()
        release = mine.release
        if release is None:
            raise PrivacyError("this audit is of releases that are kept")
        Ledger(theirs).append(replace(mine, data=other.data))
        _copy(Ledger(ours), Ledger(theirs), mine)
        second = upload(config, 2, theirs, guard_type)
    return Finding(
        f"non-interference ({_labels(config)})",
        first == second,
        "equal releases, other images: uploads and figures are equal bit for bit",
        {"upload_bytes": len(first), "differing_bytes": _differing(first, second)},
    )


def _copy(source: Ledger, target: Ledger, entry: Entry) -> None:
    digest = entry.release or ""
    target.release_path(digest).write_bytes(source.release_path(digest).read_bytes())


def reaches_the_wire(config: RunConfig, guard_type: type[Guard] = Guard) -> Finding:
    """The same client twice, all but the noise equal: the bytes must differ, for the noise."""
    plain = config.model_copy(update={"privacy": PrivacyConfig()})
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, str(i)) for i in range(4)]
        for path in paths:
            path.mkdir()
        steady = [upload(plain, 0, path) for path in paths[:2]]
        noisy = [upload(config, 0, path, guard_type) for path in paths[2:]]
    differing = _differing(*noisy)
    return Finding(
        f"noise reaches the wire ({config.privacy.mechanism}, {_labels(config)})",
        steady[0] == steady[1] and differing > 0,
        "without a mechanism two uploads are equal, with it they are not",
        {"upload_bytes": len(noisy[0]), "differing_bytes": differing},
    )


def _labels(config: RunConfig) -> str:
    return "labels used" if config.classes else "labels ignored"


def _differing(one: bytes, two: bytes) -> int:
    return sum(a != b for a, b in zip(one, two, strict=False)) + abs(len(one) - len(two))


def membership(config: RunConfig, confidence: float = CONFIDENCE) -> Finding:
    """Who was in the training data? Asked of the final model's pictures, and of the release.

    The adversary has a candidate image x and a reference population r, and ranks candidates by
    <phi1(x), m - mean phi1(r)>, where m is the mean phi1 of generated images, or the release
    itself, and the product is taken where r is white: the optimal attack on the mean of
    normally distributed vectors. Under mu-GDP no ranking reaches an area under the ROC curve
    (AUC) above Phi(mu / sqrt(2)). The same attacks on raw moments and on the run without a
    mechanism stand beside.
    """
    source = open_source("digits")
    order = np.random.default_rng(0).permutation(len(source))
    images = load_images(source, order, config.model.image_size, config.channels)
    members, others, reference, _ = torch.tensor_split(
        images, [MEMBERS, 2 * MEMBERS, 2 * MEMBERS + REFERENCE]
    )
    encoder = load_encoder(config.encoder.name, config.encoder.layers, config.encoder.pool)
    inside, outside = _phi1(encoder, members), _phi1(encoder, others)
    population = _phi1(encoder, reference)
    known = population.mean(0)
    _, deviations, axes = torch.linalg.svd(population - known, full_matrices=False)
    whitening = axes[:AXES] / deviations[:AXES, None] ** 2

    def auc(mean: Tensor) -> float:
        direction = axes[:AXES].T @ (whitening @ (mean - known))
        return float(((inside @ direction)[:, None] > outside @ direction).double().mean())

    calibration = calibrate_moments(config.privacy, MEMBERS)
    plain = config.model_copy(update={"privacy": PrivacyConfig()})
    features = features_of(encoder, torch.split(members, 50), CPU)
    release = release_moments(features, calibration)
    figures = {
        "claimed": config.privacy.epsilon,
        "auc_release": auc(release.mean[0]),
        "auc_raw_moments": auc(inside.mean(0)),
    }
    real = real_moments(encoder, torch.split(members, 50), CPU)
    runs: list[tuple[str, RunConfig, Moments]] = [("", config, release), ("_plain", plain, real)]
    for suffix, run, moments in runs:
        *_, last = simulate(run, encoder, [moments], CPU)
        generated = build_model(run, last.source.state).sample(1000)
        figures["auc_generator" + suffix] = auc(_phi1(encoder, generated).mean(0))
    ceiling = float(norm.cdf(calibration.mu / math.sqrt(2)))
    # No AUC over so many candidates of each kind has a larger deviation.
    error = float(norm.isf((1 - confidence) / 2)) * math.sqrt(0.25 / MEMBERS)
    return Finding(
        "membership inference",
        max(figures["auc_release"], figures["auc_generator"]) - error <= ceiling,
        "the AUC against release and generator stays below what mu allows, within its error",
        {**figures, "auc_ceiling": ceiling, "auc_error": error, "members": MEMBERS},
    )


def _phi1(encoder: torch.nn.Module, images: Tensor) -> Tensor:
    """(n, F) unit features of uint8 images."""
    batches = features_of(encoder, torch.split(images, 50), CPU)
    rows = [torch.cat([layer.flatten(1) for layer in features], dim=1) for features in batches]
    return torch.nn.functional.normalize(torch.cat(rows))


def audits(
    epsilons: list[float], trials: int, canaries: int, rounds: int, images: int = 4
) -> Iterator[Finding]:
    """All of them, cheapest first.

    Args:
        epsilons: claims to audit.
        trials: releases a data set of the distinguishing test.
        canaries: coins of the one-run audit.
        rounds: of each run of the membership audit.
        images: of the worst-case neighbours.
    """
    for epsilon in epsilons:
        privacy = PrivacyConfig(mechanism="moments", epsilon=epsilon)
        noise = privacy.model_copy(update={"mechanism": "mask-noise"})
        for changes, changed in (
            (LABELLED, privacy),
            (UNLABELLED, privacy),
            (LABELLED, noise),
        ):
            config = parse_config(TINY, changes).model_copy(update={"privacy": changed})
            if changed.mechanism == "moments":
                yield non_interference(config)
            yield reaches_the_wire(config)
        yield one_run(release_moments, privacy, canaries)
        yield distinguish(release_moments, privacy, trials, images)
        yield from distinguish_classes(release_classes, privacy, trials)
        larger = [
            *UNLABELLED,
            f"rounds={rounds}",
            "model.width=8",
            "train.local_steps=20",
            "train.batch_size=64",
        ]
        config = parse_config(TINY, larger)
        yield membership(config.model_copy(update={"privacy": privacy}))


def main(
    epsilon: Annotated[
        list[float] | None, typer.Option(help="Claims; by default 1 and 10.")
    ] = None,
    trials: Annotated[int, typer.Option(min=10, help="Releases a data set.")] = 5000,
    canaries: Annotated[int, typer.Option(min=10)] = 4000,
    rounds: Annotated[int, typer.Option(min=1, help="Of the membership audit's runs.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines.")] = False,
) -> None:
    """Audit the privacy mechanisms on this machine; a few minutes, nothing is downloaded."""
    torch.set_num_threads(1)
    # Its warnings are about runs, and these are none.
    logging.getLogger("prism.client").setLevel(logging.ERROR)
    try:
        failed = _failed(audits(epsilon or [1.0, 10.0], trials, canaries, rounds), as_json)
    except PrismError as error:
        raise SystemExit(f"{sys.argv[0]}: {error}") from error
    if failed:
        raise SystemExit(f"{failed} audits failed")


def _failed(found_: Iterator[Finding], as_json: bool) -> int:
    """Print each finding as it comes; how many failed."""
    failed = 0
    for found in found_:
        failed += not found.passed
        if as_json:
            print(json.dumps(asdict(found)), flush=True)
            continue
        print(f"{'ok    ' if found.passed else 'FAILED'} {found.audit}: {found.tested}")
        print("       " + "  ".join(f"{k} {v:.4g}" for k, v in found.figures.items()), flush=True)
    return failed


if __name__ == "__main__":
    typer.run(main)
