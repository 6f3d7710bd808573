"""The final model: a seed and a mask. Loading it needs no server and no data."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from common.cells import CODE_SIZE, NO_CELLS, CellTable
from common.config import RunConfig
from common.errors import ConfigError, ModelFileError, PayloadError
from common.files import write_atomically
from common.masks import Mask, from_bytes, pack, unpack
from common.model.architecture import Architecture
from common.model.frozen import frozen_weights
from common.model.generator import (
    FixedStatistics,
    balanced_labels,
    calibrate,
    generate,
    normalised_widths,
)
from common.sections import ModelConfig, Name
from common.seeding import derive_seed, uniform16
from common.state import GlobalState, sigma

_FORMAT = "prism-model-1"
_NAMES = TypeAdapter(list[Name])
_LABELS = TypeAdapter(list[int])
_LARGEST = 1e12
"""No activation of weights that draw anything has a mean or a variance beyond this."""


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
        class_names: what the labels 0, 1, ... are called; none where labels were ignored.
        unseen: labels of which no client held enough images to learn them.
        cells: what stands for labels where images have none; of all clients.
    """

    architecture: Architecture
    seed: int
    round: int
    parameters: Mask | NDArray[np.float32]
    means: NDArray[np.float32]
    variances: NDArray[np.float32]
    class_names: tuple[str, ...] = ()
    unseen: tuple[int, ...] = ()
    cells: CellTable = NO_CELLS

    @property
    def learned(self) -> tuple[int, ...]:
        """Labels that some client taught; none where labels were ignored."""
        return learned_classes(len(self.class_names), self.unseen)

    def label_of(self, name: str) -> int:
        """The label of a class, by its name or its number.

        Raises:
            ConfigError: there is no such class, or the model has none.
        """
        if not self.class_names:
            raise ConfigError("this model draws no classes: it was trained without labels")
        if name in self.class_names:
            return self.class_names.index(name)
        if name.isdecimal() and len(name) <= 4 and int(name) < len(self.class_names):
            return int(name)
        raise ConfigError(f"no class {name!r}; the model has {', '.join(self.class_names)}")

    def balanced_labels(self, n: int) -> NDArray[np.int64] | None:
        """(n,) the learned classes in turn: what `sample` draws; None without classes."""
        labels = balanced_labels(self.learned, n)
        return None if labels is None else labels.numpy()

    def sample(
        self,
        n: int,
        seed: int = 0,
        labels: NDArray[np.int64] | None = None,
        noise: Tensor | None = None,
        batch: int = 256,
    ) -> Tensor:
        """Draw images; equal arguments give equal images.

        Args:
            n: how many.
            seed: of the noise. Image i has the same noise whatever its label is.
            labels: (n,) what to draw; by default `balanced_labels(n)`. A model of cells draws
                these in the shares of their images.
            noise: (n, latent) to use instead of noise of the seed.
            batch: images at a time.

        Returns:
            (n, channels, size, size) uint8.

        Raises:
            ConfigError: labels are given to a model without classes, or lie outside them.
        """
        if labels is None:
            labels = self.balanced_labels(n)
        elif not self.class_names:
            raise ConfigError("this model draws no classes: it was trained without labels")
        elif len(labels) != n or not ((labels >= 0) & (labels < len(self.class_names))).all():
            raise ConfigError(f"give {n} labels from 0 to {len(self.class_names) - 1}")
        of_images = None if labels is None else torch.from_numpy(np.asarray(labels, np.int64))
        codes = torch.from_numpy(self.cells.drawn(n)) if self.architecture.code else None
        source = torch.Generator().manual_seed(seed)
        weights = _weights(self.architecture, self.seed, self.parameters)
        statistics = self._statistics()
        images = []
        with torch.no_grad():
            for start in range(0, n, batch):
                here = slice(start, min(start + batch, n))
                z = (
                    torch.randn(here.stop - start, self.architecture.latent, generator=source)
                    if noise is None
                    else noise[here]
                )
                chosen = (None if of is None else of[here] for of in (of_images, codes))
                given = dict(zip(("labels", "codes"), chosen, strict=True))
                x = generate(self.architecture, z, weights, statistics, **given)
                images.append(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        shape = (0, self.architecture.channels, *2 * [self.architecture.image_size])
        return torch.cat(images) if images else torch.empty(shape, dtype=torch.uint8)

    def save(self, path: Path) -> None:
        """Write the model; the file appears whole or not at all."""
        tensors = self._tensors()
        header = {
            "architecture": json.dumps(_shapes(self.architecture), sort_keys=True),
            "seed": str(self.seed),
            "round": str(self.round),
        }
        if self.class_names:
            header["classes"] = json.dumps(self.class_names)
            header["unseen"] = json.dumps(self.unseen)
        header["digest"] = _digest(header, tensors)
        # One key, because safetensors writes several in no fixed order.
        metadata = {_FORMAT: json.dumps(header, sort_keys=True)}
        write_atomically(path, safetensors.numpy.save(tensors, metadata=metadata))

    def _tensors(self) -> dict[str, NDArray[Any]]:
        others: dict[str, NDArray[Any]] = {"means": self.means, "variances": self.variances}
        if self.architecture.code:
            others |= {"codes": self.cells.codes, "counts": self.cells.counts}
        if isinstance(self.parameters, Mask):
            packed = np.frombuffer(self.parameters.tobytes(), dtype=np.uint8)
            return {"mask": packed, **others}
        return {"weights": self.parameters, **others}

    def _statistics(self) -> FixedStatistics:
        widths = normalised_widths(self.architecture)
        return FixedStatistics(
            torch.split(torch.from_numpy(self.means), widths),
            torch.split(torch.from_numpy(self.variances), widths),
        )


def learned_classes(count: int, unseen: Collection[int]) -> tuple[int, ...]:
    """Labels from 0 to `count` that are not unseen; all of them if that leaves none."""
    seen = tuple(label for label in range(count) if label not in unseen)
    return seen or tuple(range(count))


def build_model(
    config: RunConfig,
    state: GlobalState,
    unseen: Collection[int] = (),
    cells: CellTable = NO_CELLS,
    draw: int = 0,
) -> ExportedModel:
    """Draw the final mask from a state and calibrate its normalisation.

    Args:
        config: the run.
        state: what to export.
        unseen: labels that no client held; they take no part in the calibration.
        cells: of all clients, in a run that uses cells.
        draw: which of the masks that could be sampled; a run exports the first, 0.
    """
    architecture = Architecture.of(config)
    parameters = final_parameters(config, state, draw)
    weights = _weights(architecture, config.seed, parameters)
    noise = torch.Generator().manual_seed(derive_seed(config.seed, "calibration", state.round))
    classes = learned_classes(len(config.classes), unseen)
    of_cells = cells if architecture.code else None
    statistics = calibrate(architecture, weights, noise, classes=classes, cells=of_cells)
    return ExportedModel(
        architecture,
        config.seed,
        state.round,
        parameters,
        torch.cat(list(statistics.means)).numpy(),
        torch.cat(list(statistics.variances)).numpy(),
        config.classes,
        tuple(sorted(unseen)),
        cells,
    )


def final_parameters(
    config: RunConfig, state: GlobalState, draw: int = 0
) -> Mask | NDArray[np.float32]:
    """The mask, or the trained weights, of the model that is made of a state."""
    if state.values.dtype == np.float32:
        return state.weights.copy()
    if config.output.mask == "threshold":
        return pack(state.scores > 0)
    which = (state.round, draw) if draw else (state.round,)
    dither = uniform16(state.dimension, config.seed, "exported-mask", *which)
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
        # What other libraries say of it takes several lines.
        why = f": {error}" if type(error) is ValueError else ""
        raise ModelFileError(f"{path} holds no consistent model{why}") from error


def _checked(header: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> ExportedModel:
    model = ModelConfig.model_validate_json(header["architecture"])
    names = tuple(_NAMES.validate_json(header.get("classes", "[]")))
    unseen = tuple(_LABELS.validate_json(header.get("unseen", "[]")))
    if len(set(names)) < len(names) or not set(unseen) <= set(range(len(names))):
        raise ValueError("its classes contradict each other")
    seed, round_ = int(header["seed"]), int(header["round"])
    if not (0 <= seed < 2**63 and 0 <= round_ < 2**63):
        raise ValueError(f"no run has seed {seed} and round {round_}")
    cells, code = _cells(tensors)
    architecture = Architecture(
        model.latent,
        model.width,
        model.image_size,
        model.channels or 1,
        len(names),
        code,
        model.fan_in,
    )
    d, norms = architecture.dimension, sum(normalised_widths(architecture))
    expected: dict[str, tuple[int, type]] = {"means": (norms, np.float32)}
    expected["variances"] = (norms, np.float32)
    name = "mask" if "mask" in tensors else "weights"
    expected[name] = (-(-d // 8), np.uint8) if name == "mask" else (d, np.float32)
    for key, (size, dtype) in expected.items():
        if tensors[key].shape != (size,) or tensors[key].dtype != dtype:
            raise ValueError(f"{key} has shape {tensors[key].shape}")
        # NaN compares as false.
        if dtype is np.float32 and not (np.abs(tensors[key]) <= _LARGEST).all():
            raise ValueError(f"one of its {key} is not a number, or too large to be one")
    if (tensors["variances"] < 0).any():
        raise ValueError("a variance is negative")
    return ExportedModel(
        architecture,
        seed,
        round_,
        from_bytes(tensors[name].tobytes(), d) if name == "mask" else tensors[name],
        tensors["means"],
        tensors["variances"],
        names,
        unseen,
        cells,
    )


def _cells(tensors: Mapping[str, NDArray[Any]]) -> tuple[CellTable, int]:
    """The checked table of cells and the entries of a code; an empty one and 0 if there is none."""
    if "codes" not in tensors:
        return NO_CELLS, 0
    codes, counts = tensors["codes"], tensors["counts"]
    if codes.dtype != np.float32 or counts.dtype != np.int64:
        raise ValueError("codes and counts are of other types")
    return CellTable.of(codes, counts), CODE_SIZE


def _shapes(architecture: Architecture) -> dict[str, Any]:
    """The header's part that tells shapes; classes stand beside it by name, codes as tensors."""
    left_out = {"classes", "code"}
    if architecture.fan_in != "torch":
        left_out |= {"fan_in"}
    return {key: value for key, value in asdict(architecture).items() if key not in left_out}


def _digest(header: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> str:
    sha = hashlib.sha256()
    for key, text in sorted(header.items()):
        sha.update(struct.pack("<I", len(key)) + key.encode())
        sha.update(struct.pack("<I", len(text)) + text.encode())
    for key, tensor in sorted(tensors.items()):
        sha.update(f"{key}:{tensor.dtype.str}:{tensor.shape};".encode())
        sha.update(tensor.tobytes())
    return sha.hexdigest()
