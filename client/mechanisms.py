"""The two mechanisms: Gaussian releases of what the images are allowed to say.

`moments` (DP-MEPF, Harder et al., TMLR 2023, made federated). Every image counts in two means
of unit vectors, phi1 = f / |f| and phi2 = f^2 / |f^2|, and nowhere else. Features are not
negative, so two unit vectors are at most sqrt(2) apart, and replacing one of n images moves
each mean by at most sqrt(2) / n. One Gaussian release of both, and everything that the client
does afterwards is post-processing.

`mask-noise` (PRISM's own proposal, for study). Each round, the client's change of theta is
clipped to an L2 norm and noise is added before the mask is sampled. Rounds compose.

Both work on a grid of 2**-24 standard deviations: what depends on images is cut off towards
zero, which lengthens no vector, so sensitivities hold exactly and not up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from client.loss import Kind, Moments
from client.noise import SIGMA_BITS, Integers, discrete_gaussian
from common.accounting import gaussian_epsilon, gaussian_sigma
from common.config import RunConfig
from common.data import to_unit
from common.errors import PrivacyError
from common.sections import PrivacyConfig
from common.seeding import words
from common.state import PROB_ONE, GlobalState, Values, logit, sigma

LOUD_NOISE: Final = 0.5
"""Noise of this norm beside unit features is warned of."""
_BELOW_ONE: Final = 1 - 2.0**-30
"""Outweighs the rounding of float64 in a norm that must not exceed 1."""
_PROBES: Final = 4


@dataclass(frozen=True)
class Calibration:
    """What one Gaussian release adds to what.

    Attributes:
        epsilon: of this release alone.
        delta: likewise.
        sensitivities: L2, of each vector released, if one record is replaced.
        sigmas: standard deviation a coordinate of the noise on each.
    """

    epsilon: float
    delta: float
    sensitivities: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def mu(self) -> float:
        """Joint sensitivity over standard deviation; see `common.accounting`."""
        pairs = zip(self.sensitivities, self.sigmas, strict=True)
        return math.hypot(*(sensitivity / sigma for sensitivity, sigma in pairs))


def calibrate_moments(privacy: PrivacyConfig, n: int) -> Calibration:
    """Both moments of n images; sigma_i = sqrt(2) * Delta_i * sigma_0, Delta_i = sqrt(2) / n.

    Raises:
        PrivacyError: delta is 1/n or more.
    """
    check_delta(privacy.delta, n)
    sensitivity = math.sqrt(2) / n
    noise = math.sqrt(2) * sensitivity * gaussian_sigma(privacy.epsilon, privacy.delta)
    return Calibration(privacy.epsilon, privacy.delta, (sensitivity,) * 2, (noise,) * 2)


def calibrate_mask_noise(privacy: PrivacyConfig) -> Calibration:
    """One round: any two changes of theta within the clipping norm lie 2 * clip apart at most."""
    noise = 2 * privacy.clip * gaussian_sigma(privacy.epsilon, privacy.delta)
    return Calibration(privacy.epsilon, privacy.delta, (2 * privacy.clip,), (noise,))


def planned_epsilon(config: RunConfig) -> float:
    """Epsilon, at the config's delta, of a client that takes part in every round."""
    privacy = config.privacy
    if privacy.mechanism == "none":
        return math.inf
    if privacy.mechanism == "moments":
        return privacy.epsilon
    mu = calibrate_mask_noise(privacy).mu
    return gaussian_epsilon(mu * math.sqrt(config.rounds), privacy.delta)


def check_delta(delta: float, n: int) -> None:
    """Refuse a delta that publishing a whole image at random would satisfy.

    Raises:
        PrivacyError: it is 1/n or more.
    """
    if delta * n >= 1:
        raise PrivacyError(
            f"privacy.delta = {delta:g} is no protection for {n} images: it must be below "
            f"1/n = {1 / n:.3g}"
        )


def release_moments(batches: Iterable[Sequence[Tensor]], calibration: Calibration) -> Moments:
    """The one private release of a client's images.

    Args:
        batches: features of the images, per batch and layer (B, C, H, W), not negative.
        calibration: from `calibrate_moments`, for as many images as the batches hold.

    Returns:
        Normalised moments on the CPU; coordinates may be negative, as noise is.

    Raises:
        PrivacyError: features are negative or not finite, or the images are not n.
    """
    n = round(math.sqrt(2) / calibration.sensitivities[0])
    grid = n * calibration.sigmas[0] / 2**SIGMA_BITS
    sums: Integers | None = None
    count = 0
    for features in batches:
        of_batch = _unit_sums(features, grid)
        sums = of_batch if sums is None else sums + of_batch
        count += len(features[0])
    if sums is None or count != n:
        raise PrivacyError(f"noise was calibrated for {n} images, and there are {count}")
    noisy = sums + discrete_gaussian(sums.size).reshape(sums.shape)
    means = torch.from_numpy(noisy * (grid / n)).float()
    return Moments(means[:1], means[1:], kind=Kind.NORMALISED)


def _unit_sums(features: Sequence[Tensor], grid: float) -> Integers:
    """(2, F) int64: phi1 and phi2 in steps of the grid, cut off, summed over the batch."""
    flat = [layer.detach().flatten(1).double() for layer in features]
    if not all(bool(torch.isfinite(layer).all()) and bool((layer >= 0).all()) for layer in flat):
        raise PrivacyError(
            "features are negative or not finite: the sensitivity would be unbounded"
        )
    rows = []
    for layers in (flat, [layer.square() for layer in flat]):
        norm = torch.stack([layer.square().sum(1) for layer in layers]).sum(0).sqrt()
        # An image without any feature is the zero vector, which is within reach of all others.
        scale = torch.where(norm > 0, _BELOW_ONE / grid / norm, 0.0).unsqueeze(1)
        rows.append(torch.cat([(layer * scale).floor().long().sum(0) for layer in layers]))
    sums: Integers = torch.stack(rows).cpu().numpy()
    return sums


def features_of(
    encoder: nn.Module, batches: Iterable[Tensor], device: torch.device
) -> Iterator[list[Tensor]]:
    """Features of uint8 images (B, C, H, W), batch by batch, without gradients."""
    for images in batches:
        with torch.no_grad():
            yield list(encoder(to_unit(images.to(device))))


def check_encoder(encoder: nn.Module, shape: tuple[int, int, int], device: torch.device) -> int:
    """Refuse an encoder that would let one image move another's features.

    It is tried on public noise: what it says about an image must not hang on the images
    beside it.

    Args:
        encoder: on the device.
        shape: (C, H, W) of an image.
        device: where to try.

    Returns:
        F, the number of features of an image.

    Raises:
        PrivacyError: it depends on the batch, or has negative features.
    """
    size = math.prod(shape)
    pixels = words(-(-_PROBES * size // 8), 0, "encoder-probe").view(np.uint8)[: _PROBES * size]
    images = torch.from_numpy(pixels.copy()).reshape(_PROBES, *shape)
    (together,) = features_of(encoder, [images], device)
    for index in range(_PROBES):
        (alone,) = features_of(encoder, [images[index : index + 1]], device)
        for mine, among in zip(alone, together, strict=True):
            if not torch.allclose(mine[0], among[index], rtol=1e-3, atol=1e-3):
                raise PrivacyError(
                    "the encoder's features of an image depend on the images beside it (is it "
                    "in evaluation mode?): one record could move all of them"
                )
    if any(bool((layer < 0).any()) for layer in together):
        raise PrivacyError("the encoder has negative features; sensitivities assume there are none")
    return sum(layer[0].numel() for layer in together)


def noisy_values(privacy: PrivacyConfig, state: GlobalState, values: Values) -> Values:
    """What training gave, with the noise of mask-noise in theta, so that all made of it has it.

    Args:
        privacy: with any other mechanism, the values come back as they are.
        state: what the round started from, which is public.
        values: (d,) int16, the local scores.
    """
    if privacy.mechanism != "mask-noise":
        return values
    local = GlobalState(state.round, values).scores
    public = sigma(state.scores).astype(np.float64) / PROB_ONE
    change = sigma(local).astype(np.float64) / PROB_ONE - public
    norm = float(np.linalg.norm(change))
    grid = calibrate_mask_noise(privacy).sigmas[0] / 2**SIGMA_BITS
    scale = _BELOW_ONE / grid * (min(1.0, privacy.clip / norm) if norm else 1.0)
    noisy = np.trunc(change * scale).astype(np.int64) + discrete_gaussian(change.size)
    theta = np.rint((public + noisy * grid) * PROB_ONE)
    return logit(np.clip(theta, 1, PROB_ONE - 1).astype(np.uint16))
