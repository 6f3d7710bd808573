"""The final model: a seed and a mask. Loading it needs no server and no data."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import ModelConfig, RunConfig
from common.errors import ModelFileError, PayloadError
from common.files import write_atomically
from common.masks import Mask, from_bytes, pack, unpack
from common.model.architecture import Architecture
from common.model.frozen import frozen_weights
from common.model.generator import FixedStatistics, calibrate, generate, normalised_widths
from common.seeding import derive_seed, uniform16
from common.state import GlobalState, sigma

_FORMAT = "prism-model-1"


@dataclass(frozen=True)
class ExportedModel:
    """A generator that can be sampled.

    Attributes:
        architecture: shapes.
        seed: rebuilds the frozen weights.
        round: rounds that it was trained for.
        parameters: the mask of d bits, or (d,) float32 trained weights.
        means: calibrated normalisation means, all sites concatenated, float32.
        variances: likewise.
    """

    architecture: Architecture
    seed: int
    round: int
    parameters: Mask | NDArray[np.float32]
    means: NDArray[np.float32]
    variances: NDArray[np.float32]

    def sample(self, n: int, seed: int = 0, batch: int = 256) -> Tensor:
        """(n, channels, size, size) uint8 images; equal seeds give equal images."""
        noise = torch.Generator().manual_seed(seed)
        weights = _weights(self.architecture, self.seed, self.parameters)
        statistics = self._statistics()
        images = []
        with torch.no_grad():
            for start in range(0, n, batch):
                z = torch.randn(min(batch, n - start), self.architecture.latent, generator=noise)
                x = generate(self.architecture, z, weights, statistics)
                images.append(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        shape = (0, self.architecture.channels, *2 * [self.architecture.image_size])
        return torch.cat(images) if images else torch.empty(shape, dtype=torch.uint8)

    def save(self, path: Path) -> None:
        """Write the model; the file appears whole or not at all."""
        tensors = self._tensors()
        header = {
            "architecture": json.dumps(asdict(self.architecture), sort_keys=True),
            "seed": str(self.seed),
            "round": str(self.round),
        }
        header["digest"] = _digest(header, tensors)
        # One key, because safetensors writes several in no fixed order.
        metadata = {_FORMAT: json.dumps(header, sort_keys=True)}
        write_atomically(path, safetensors.numpy.save(tensors, metadata=metadata))

    def _tensors(self) -> dict[str, NDArray[Any]]:
        statistics = {"means": self.means, "variances": self.variances}
        if isinstance(self.parameters, Mask):
            packed = np.frombuffer(self.parameters.tobytes(), dtype=np.uint8)
            return {"mask": packed, **statistics}
        return {"weights": self.parameters, **statistics}

    def _statistics(self) -> FixedStatistics:
        widths = normalised_widths(self.architecture)
        return FixedStatistics(
            torch.split(torch.from_numpy(self.means), widths),
            torch.split(torch.from_numpy(self.variances), widths),
        )


def build_model(config: RunConfig, state: GlobalState) -> ExportedModel:
    """Draw the final mask from a state and calibrate its normalisation."""
    architecture = Architecture.of(config.model)
    parameters = _final_parameters(config, state)
    weights = _weights(architecture, config.seed, parameters)
    noise = torch.Generator().manual_seed(derive_seed(config.seed, "calibration", state.round))
    statistics = calibrate(architecture, weights, noise)
    return ExportedModel(
        architecture,
        config.seed,
        state.round,
        parameters,
        torch.cat(list(statistics.means)).numpy(),
        torch.cat(list(statistics.variances)).numpy(),
    )


def _final_parameters(config: RunConfig, state: GlobalState) -> Mask | NDArray[np.float32]:
    if state.values.dtype == np.float32:
        return state.weights.copy()
    if config.output.mask == "threshold":
        return pack(state.scores > 0)
    dither = uniform16(state.dimension, config.seed, "exported-mask", state.round)
    return pack(dither < sigma(state.scores))


def _weights(
    architecture: Architecture, seed: int, parameters: Mask | NDArray[np.float32]
) -> Tensor:
    """(d,) float32: W * M of a mask, or the trained weights."""
    if isinstance(parameters, Mask):
        return torch.from_numpy(frozen_weights(architecture, seed) * unpack(parameters))
    return torch.from_numpy(parameters)


def load_model(path: Path | str) -> ExportedModel:
    """Read a model file and check every part of it.

    Raises:
        ModelFileError: the file is missing, truncated, altered or of another kind.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelFileError(f"no model at {path}") from error
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path} is not a model file, or is cut short") from error
    if _FORMAT not in metadata:
        raise ModelFileError(f"{path} is not a PRISM model of format {_FORMAT}")
    try:
        header = {str(k): str(v) for k, v in json.loads(metadata[_FORMAT]).items()}
        if header.pop("digest", "") != _digest(header, tensors):
            raise ModelFileError(f"{path} is corrupt: its digest does not match its content")
        return _checked(header, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, PayloadError) as error:
        raise ModelFileError(f"{path} holds no consistent model") from error


def _checked(header: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> ExportedModel:
    architecture = Architecture.of(ModelConfig.model_validate_json(header["architecture"]))
    d, norms = architecture.dimension, sum(normalised_widths(architecture))
    expected: dict[str, tuple[int, type]] = {"means": (norms, np.float32)}
    expected["variances"] = (norms, np.float32)
    name = "mask" if "mask" in tensors else "weights"
    expected[name] = (-(-d // 8), np.uint8) if name == "mask" else (d, np.float32)
    for key, (size, dtype) in expected.items():
        if tensors[key].shape != (size,) or tensors[key].dtype != dtype:
            raise ValueError(f"{key} has shape {tensors[key].shape}")
    return ExportedModel(
        architecture,
        int(header["seed"]),
        int(header["round"]),
        from_bytes(tensors[name].tobytes(), d) if name == "mask" else tensors[name],
        tensors["means"],
        tensors["variances"],
    )


def _digest(header: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> str:
    sha = hashlib.sha256()
    for key, text in sorted(header.items()):
        sha.update(struct.pack("<I", len(key)) + key.encode())
        sha.update(struct.pack("<I", len(text)) + text.encode())
    for key, tensor in sorted(tensors.items()):
        sha.update(f"{key}:{tensor.dtype.str}:{tensor.shape};".encode())
        sha.update(tensor.tobytes())
    return sha.hexdigest()
