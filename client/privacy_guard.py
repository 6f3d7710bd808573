"""The client's side of the privacy bargain: what it agrees to, releases, records and says."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import pickle
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from client.ledger import Entry, Ledger, total_epsilon
from client.local_images import LocalImages, local_moments
from client.loss import Moments
from client.mechanisms import (
    Calibration,
    calibrate_mask_noise,
    check_delta,
    noisy_values,
    planned_epsilon,
)
from client.release import Kept, Release, release_of
from common.config import RunConfig
from common.encoders import FeatureEncoder
from common.errors import PrivacyError, StorageError
from common.files import failure_of, write_atomically
from common.state import GlobalState, Values

MECHANISMS = ("moments", "mask-noise")
"""What this client can apply, as `privacy.mechanism` spells it."""
log = logging.getLogger("prism.client")


class Guard:
    """Stands between one client's images and everything else.

    Args:
        directory: where the ledger is kept; None forbids every mechanism.
        max_epsilon: the largest total that this client agrees to; None agrees to all.
    """

    def __init__(self, directory: Path | None, max_epsilon: float | None = None) -> None:
        self._ledger = None if directory is None else Ledger(directory)
        self._max = math.inf if max_epsilon is None else max_epsilon
        self._template: Entry | None = None

    def agree(self, config: RunConfig) -> None:
        """Look at the server's config before joining, and say what it promises.

        Raises:
            PrivacyError: it is weaker than this client asks for, or its promise could not be
                recorded.
            StorageError: the ledger was tampered with.
        """
        privacy, planned = config.privacy, planned_epsilon(config)
        none = privacy.mechanism == "none"
        if planned > self._max:
            offer = (
                "no privacy mechanism"
                if none
                else f'"{privacy.mechanism}" with epsilon {planned:.4g} over the run'
            )
            raise PrivacyError(
                f"the server's config has {offer}, and --max-epsilon here is {self._max:g}"
            )
        if self._ledger is not None:
            self._ledger.entries()
        if none:
            log.info("No formal privacy guarantee: this run has no mechanism")
        elif self._ledger is None:
            raise PrivacyError(
                f'privacy.mechanism = "{privacy.mechanism}" needs --state DIR: what is released '
                "is recorded there, and never drawn twice"
            )
        elif privacy.mechanism == "mask-noise":
            log.warning(
                "mask-noise: epsilon %g a round is epsilon %.4g over %d rounds",
                privacy.epsilon,
                planned,
                config.rounds,
            )

    def moments(
        self,
        config: RunConfig,
        encoder: FeatureEncoder,
        images: LocalImages,
        device: torch.device,
    ) -> Moments:
        """What training may know of the images: their moments, or the one private release.

        Args:
            config: the run, agreed to.
            encoder: the frozen encoder, on the device.
            images: of this client.
            device: where to compute.

        Raises:
            PrivacyError: the promise cannot be kept; nothing was released.
        """
        mechanism, n = config.privacy.mechanism, len(images)
        if mechanism == "moments":
            release = release_of(config, encoder, images, device)
            entry = _entry(
                config,
                encoder,
                n,
                release.features,
                release.calibration,
                _fingerprint(images),
            )
            if release.scales is not None:
                entry = replace(entry, classes=release.classes, scales=asdict(release.scales))
            return self._released(entry, release).to(device)
        real = local_moments(encoder, images, device)
        features = real.mean.shape[1]
        if mechanism == "mask-noise":
            check_delta(config.privacy.delta, n)
            calibration = calibrate_mask_noise(config.privacy)
            data = _fingerprint(images)
            self._template = _entry(config, encoder, n, features, calibration, data)
        elif self._ledger is not None:
            self._record_unprotected(_entry(config, encoder, n, features, None, None))
        return real

    def values(self, config: RunConfig, state: GlobalState, values: Values) -> Values:
        """What training gave, as it may leave: noisy under mask-noise, else as it is.

        Raises:
            PrivacyError: one more release would exceed --max-epsilon.
        """
        if config.privacy.mechanism != "mask-noise":
            return values
        if self._template is None:
            raise PrivacyError("mask-noise was never calibrated for this client's images")
        ledger = self._needed()
        entry = replace(self._template, round=state.round, features=int(values.size))
        total = self._permit(ledger.entries(), entry)
        ledger.append(entry)
        log.info("mask-noise: with this round, epsilon %.4g at delta %g", total, entry.delta)
        return noisy_values(config.privacy, state, values)

    def reportable(self, config: RunConfig, loss: float) -> float | None:
        """A loss as it may travel; None where it must stay here, or is not finite."""
        stays = config.privacy.mechanism == "mask-noise" or not math.isfinite(loss)
        return None if stays else loss

    def check_report(self, config: RunConfig, loss: float | None) -> None:
        """Look at what travels beside an update.

        Under `moments` the loss is computed from the release and says no more than it. Under
        `mask-noise` it is computed from the images.

        Raises:
            PrivacyError: a figure computed from the images would leave.
        """
        if config.privacy.mechanism == "mask-noise" and loss is not None:
            raise PrivacyError("under mask-noise the loss is a figure of the images: it stays here")

    def _released(self, entry: Entry, release: Release) -> Moments:
        """The kept release that an entry describes, or a new one, recorded before it is used."""
        ledger = self._needed()
        before = ledger.entries()
        found = _kept(ledger, before, entry)
        if found is not None:
            content, path = found
            return _read(release, content, path)
        if release.loudness is not None:
            log.warning("%s: set encoder.pool, or fewer encoder.layers", release.loudness)
        total = self._permit(before, entry)
        content = _to_bytes(release.draw())
        entry = replace(entry, release=hashlib.sha256(content).hexdigest())
        ledger.append(entry)
        path = ledger.release_path(entry.release or "")
        try:
            write_atomically(path, content)
        except OSError as error:
            raise StorageError(
                f"cannot write {path}: {failure_of(error)}; this release is in the ledger and "
                "counts, though it is lost: make room before another is drawn"
            ) from error
        log.info(
            "released %s of %d images once: epsilon %g, delta %g, record-level, "
            "replace-one, n public, entire run",
            "moments of all classes" if entry.classes else "two moments",
            entry.n,
            entry.epsilon,
            entry.delta,
        )
        if before:
            log.warning(
                "release %d in this ledger: they add up, to epsilon %.4g", len(before) + 1, total
            )
        return _read(release, content, path)

    def _permit(self, before: Sequence[Entry], entry: Entry) -> float:
        """Total epsilon with one more entry.

        Raises:
            PrivacyError: it is more than this client agrees to.
        """
        if entry.delta is None:
            raise PrivacyError("a release without a mechanism cannot be permitted")
        total = total_epsilon([*before, entry], entry.delta)
        if total > self._max * (1 + 1e-6):
            raise PrivacyError(
                f"{len(before)} releases are in the ledger; one more makes epsilon {total:.4g} "
                f"at delta {entry.delta:g}, and --max-epsilon here is {self._max:g}"
            )
        return total

    def _record_unprotected(self, entry: Entry) -> None:
        """A run without a mechanism ends whatever guarantee there was; the ledger must know."""
        ledger = self._needed()
        before = ledger.entries()
        if any(e.mechanism == "none" and e.run == entry.run for e in before):
            return
        if any(e.mechanism != "none" for e in before):
            log.warning("this run has no mechanism: the guarantees in the ledger end here")
        ledger.append(entry)

    def _needed(self) -> Ledger:
        if self._ledger is None:
            raise PrivacyError("a release needs a ledger: give --state DIR")
        return self._ledger


def _entry(
    config: RunConfig,
    encoder: FeatureEncoder,
    n: int,
    features: int,
    calibration: Calibration | None,
    data: str | None,
) -> Entry:
    return Entry(
        mechanism=config.privacy.mechanism,
        run=config.run_id().hex(),
        round=None,
        n=n,
        data=data,
        encoder={
            "name": config.encoder.name,
            "digest": encoder.digest().hex(),
            "layers": list(encoder.layers),
            "pool": encoder.pool,
            "image": [config.channels, config.model.image_size, config.model.image_size],
        },
        features=features,
        sensitivities=calibration.sensitivities if calibration else (),
        sigmas=calibration.sigmas if calibration else (),
        epsilon=calibration.epsilon if calibration else None,
        delta=calibration.delta if calibration else None,
        release=None,
    )


def _kept(ledger: Ledger, entries: Sequence[Entry], wanted: Entry) -> tuple[bytes, Path] | None:
    """The release that was already made from the same images in the same way, and its file."""
    for entry in reversed(entries):
        if entry.release is None or _kind(entry) != _kind(wanted):
            continue
        path = ledger.release_path(entry.release)
        if not path.exists():
            log.warning("the release of %s is gone; it still counts", entry.time)
            continue
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry.release:
            raise StorageError(f"{path} is not what the ledger says was released")
        log.info("taking the release of %s again: nothing is drawn", entry.time)
        return content, path
    return None


def _kind(entry: Entry) -> tuple[object, ...]:
    """What two entries have in common if one release serves both; the run may differ.

    Scales follow from the encoder, and are kept with the release.
    """
    how = (entry.mechanism, entry.encoder, entry.sigmas, entry.epsilon, entry.delta)
    return (*how, entry.data, entry.classes)


def _fingerprint(images: LocalImages) -> str:
    """SHA-256 of the images, and of their labels where these are used."""
    sha = hashlib.sha256()
    for batch in images.batches():
        sha.update(f"{tuple(batch.shape)}".encode())
        sha.update(batch.numpy().tobytes())
    for labels in images.batch_labels():
        sha.update(f"labels {tuple(labels.shape)}".encode())
        sha.update(labels.numpy().tobytes())
    return sha.hexdigest()


def _to_bytes(kept: Kept) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(kept), buffer)
    return buffer.getvalue()


def _read(release: Release, content: bytes, path: Path) -> Moments:
    try:
        return release.read(torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"))
    except (RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise StorageError(f"{path} is corrupt") from error
