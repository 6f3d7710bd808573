"""The client's side of the privacy bargain: what it agrees to, releases, records and says."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from client.ledger import Entry, Ledger, total_epsilon
from client.local_images import LocalImages, local_moments
from client.loss import Moments
from client.mechanisms import (
    LOUD_NOISE,
    Calibration,
    calibrate_mask_noise,
    calibrate_moments,
    check_delta,
    check_encoder,
    features_of,
    noisy_values,
    planned_epsilon,
    release_moments,
)
from common.config import RunConfig
from common.encoders import FeatureEncoder
from common.errors import PrivacyError, StorageError
from common.files import write_atomically
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
        mechanism, n, batches = config.privacy.mechanism, len(images), images.batches
        if mechanism == "moments":
            calibration = calibrate_moments(config.privacy, n)
            features = check_encoder(encoder, _image_shape(config), device)
            entry = _entry(config, encoder, n, features, calibration, _fingerprint(batches()))
            return self._release(
                entry, lambda: release_moments(features_of(encoder, batches(), device), calibration)
            ).to(device)
        real = local_moments(encoder, images, device)
        features = real.mean.shape[1]
        if mechanism == "mask-noise":
            check_delta(config.privacy.delta, n)
            calibration = calibrate_mask_noise(config.privacy)
            data = _fingerprint(batches())
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

    def _release(self, entry: Entry, draw: Callable[[], Moments]) -> Moments:
        """The kept release that an entry describes, or a new one, recorded before it is used."""
        ledger = self._needed()
        before = ledger.entries()
        kept = _kept(ledger, before, entry)
        if kept is not None:
            return kept
        norm = entry.sigmas[0] * math.sqrt(entry.features)
        if norm > LOUD_NOISE:
            log.warning(
                "the noise has norm %.2g beside unit features: set encoder.pool, or fewer "
                "encoder.layers",
                norm,
            )
        total = self._permit(before, entry)
        made = draw()
        content = _to_bytes(made)
        entry = replace(entry, release=hashlib.sha256(content).hexdigest())
        ledger.append(entry)
        write_atomically(ledger.release_path(entry.release or ""), content)
        log.info(
            "released two moments of %d images once: epsilon %g, delta %g, record-level, "
            "replace-one, n public, entire run",
            entry.n,
            entry.epsilon,
            entry.delta,
        )
        if before:
            log.warning(
                "release %d in this ledger: they add up, to epsilon %.4g", len(before) + 1, total
            )
        return made

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


def _image_shape(config: RunConfig) -> tuple[int, int, int]:
    return config.channels, config.model.image_size, config.model.image_size


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
            "image": list(_image_shape(config)),
        },
        features=features,
        sensitivities=calibration.sensitivities if calibration else (),
        sigmas=calibration.sigmas if calibration else (),
        epsilon=calibration.epsilon if calibration else None,
        delta=calibration.delta if calibration else None,
        release=None,
    )


def _kept(ledger: Ledger, entries: Sequence[Entry], wanted: Entry) -> Moments | None:
    """The release that was already made from the same images in the same way."""
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
        return _from_bytes(content, path)
    return None


def _kind(entry: Entry) -> tuple[object, ...]:
    """What two entries have in common if one release serves both; the run may differ."""
    return (entry.mechanism, entry.data, entry.encoder, entry.sigmas, entry.epsilon, entry.delta)


def _fingerprint(batches: Iterable[Tensor]) -> str:
    sha = hashlib.sha256()
    for images in batches:
        sha.update(f"{tuple(images.shape)}".encode())
        sha.update(images.numpy().tobytes())
    return sha.hexdigest()


def _to_bytes(moments: Moments) -> bytes:
    buffer = io.BytesIO()
    torch.save({"first": moments.mean, "second": moments.variance}, buffer)
    return buffer.getvalue()


def _from_bytes(content: bytes, path: Path) -> Moments:
    try:
        saved = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        return Moments(saved["first"], saved["second"], normalised=True)
    except (RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise StorageError(f"{path} is corrupt") from error
