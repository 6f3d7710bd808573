"""The one private release of a client's images: what is drawn, what is kept, what it means.

Drawing is the mechanism and reads the images; what is kept is all that came out of it; reading
that is post-processing, and may be done again. Which release it is follows from the run: of all
images as one group where labels are ignored, of all classes where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from client.class_release import calibrate_classes, class_moments, release_classes
from client.local_images import LocalImages
from client.loss import Kind, Moments
from client.mechanisms import (
    LOUD_NOISE,
    Calibration,
    calibrate_moments,
    check_encoder,
    features_of,
    release_moments,
)
from client.weighted import Scales, public_scales
from common.config import RunConfig
from common.encoders import FeatureEncoder

Kept = Mapping[str, Tensor]
"""What a release gave, by name, as it is written to a file."""


@dataclass(frozen=True)
class Release:
    """A private release that can be made of one client's images.

    Attributes:
        calibration: what noise it adds to what.
        features: F, of an image.
        draw: the mechanism. What is drawn and not kept must be paid for again. Raises PrivacyError
            if the sensitivity would be unbounded; nothing was released then.
        read: what training matches, on the CPU, from what was drawn. Raises KeyError or
            RuntimeError if it is nothing of the kind, PrivacyError if it is but noise.
        loudness: a warning if noise of this size leaves little to see; says nothing of the images.
        classes: of the run, all of which it releases; 0 where labels are ignored.
        scales: of the release of classes.
    """

    calibration: Calibration
    features: int
    draw: Callable[[], Kept]
    read: Callable[[Kept], Moments]
    loudness: str | None
    classes: int = 0
    scales: Scales | None = None


def release_of(
    config: RunConfig, encoder: FeatureEncoder, images: LocalImages, device: torch.device
) -> Release:
    """The release that a run asks for; the images are not looked at before it is drawn.

    Args:
        config: the run, whose mechanism is "moments".
        encoder: the frozen encoder, on the device.
        images: of this client, labelled where the run uses labels.
        device: where to compute features.

    Raises:
        PrivacyError: the encoder or delta could not keep the promise.
    """
    shape = (config.channels, config.model.image_size, config.model.image_size)
    features = check_encoder(encoder, shape, device)
    if not config.classes:
        return _release_of_all(config, encoder, images, device, features)
    scales = public_scales(encoder, shape)
    return _release_of_classes(config, encoder, images, device, scales)


def _release_of_all(
    config: RunConfig,
    encoder: FeatureEncoder,
    images: LocalImages,
    device: torch.device,
    features: int,
) -> Release:
    calibration = calibrate_moments(config.privacy, len(images))

    def draw() -> Kept:
        made = release_moments(features_of(encoder, images.batches(), device), calibration)
        return {"first": made.mean, "second": made.variance}

    def read(kept: Kept) -> Moments:
        return Moments(kept["first"], kept["second"], kind=Kind.NORMALISED)

    norm = calibration.sigmas[0] * math.sqrt(features)
    loud = f"the noise has norm {norm:.2g} beside unit features" if norm > LOUD_NOISE else None
    return Release(calibration, features, draw, read, loud)


def _release_of_classes(
    config: RunConfig,
    encoder: FeatureEncoder,
    images: LocalImages,
    device: torch.device,
    scales: Scales,
) -> Release:
    calibration, classes = calibrate_classes(config.privacy, len(images)), len(config.classes)
    (sigma,) = calibration.sigmas

    def draw() -> Kept:
        features = features_of(encoder, images.batches(), device)
        batches = zip(features, images.batch_labels(), strict=True)
        released = release_classes(batches, classes, calibration, scales)
        return {"released": torch.from_numpy(released), **scales.to_tensors()}

    def read(kept: Kept) -> Moments:
        # By the scales that it was drawn with: another machine's may round to other powers.
        return class_moments(kept["released"].numpy(), sigma, Scales.from_tensors(kept))

    # A class with that share of the images has about as much signal as noise.
    share = sigma * math.sqrt(scales.length)
    loud = f"the noise drowns classes with less than {min(share, 1):.0%} of the images"
    return Release(
        calibration=calibration,
        features=scales.features,
        draw=draw,
        read=read,
        loudness=loud if share > 1 / classes else None,
        classes=classes,
        scales=scales,
    )
