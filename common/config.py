"""RunConfig: everything that defines a run. TOML in, validated, frozen, digest out.

The server's config is the only one; clients receive it when they join. So nothing here is
about one machine: paths, devices, addresses and keys are command-line options.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.catalogue import DATA_SETS
from common.config_text import apply_override, mistakes
from common.defaults import brought_classes, with_defaults
from common.errors import ConfigError

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Names = tuple[Name, ...]


def _known_data(name: str) -> str:
    if name not in DATA_SETS:
        raise ValueError(f"choose {', '.join(DATA_SETS)}")
    return name


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(_Section):
    """What the clients hold, and how one data set is split among them."""

    name: Annotated[str, AfterValidator(_known_data)] = "digits"
    partition: Literal["iid", "shards", "dirichlet", "attribute"] = "iid"
    clients: Positive = 3
    """Partitions that the data set is cut into; the usual number of clients."""
    shards_per_client: Positive = 4
    dirichlet_alpha: Annotated[float, Field(gt=0)] = 0.005
    labels: Literal["use", "cells", "ignore"] | None = None
    """Match and draw each class by itself; or, whether there are labels or not, cells of similar
    images, which each client makes of its own; or all images together, as published. By default
    labels are used wherever the classes are known."""
    cells: Annotated[int, Field(ge=1, le=1000)] = 8
    """Cells that a client makes of its images; fewer where these would be too small."""
    classes: Annotated[Names, Field(strict=False, max_length=1000)] = ()
    """What the classes are called; known data sets bring theirs, folders have sub-folders."""
    attributes: Annotated[Names, Field(strict=False, max_length=8)] = ()
    """CelebA's attributes whose combinations are the classes; by default Male."""
    min_class_size: Annotated[int, Field(ge=2)] = 20
    """A client leaves out classes and cells of fewer images; not under "moments", where the
    private release decides."""


class ModelConfig(_Section):
    """The frozen generator."""

    width: Annotated[int, Field(ge=1, le=1024)] = 16
    """Channels of the last block; each block before it has twice as many."""
    image_size: Literal[16, 32, 64, 128] = 32
    channels: Literal[1, 3] | None = None
    """Grey or colour; by default what `data.name` has."""
    latent: Annotated[int, Field(ge=1, le=4096)] = 128
    fan_in: Literal["inputs", "torch"] = "inputs"
    """By which the magnitude of the first layer's weights is chosen: the inputs that meet in an
    output, or what torch takes for the fan-in of a transposed convolution, as published."""


class EncoderConfig(_Section):
    """The frozen feature extractor."""

    name: Literal["small", "vgg19_bn"] = "small"
    layers: Annotated[tuple[int, ...] | None, Field(strict=False)] = None
    """Feature layers to match, by index; by default all of them."""
    pool: Positive | None = None
    """Average-pool each feature map down to pool x pool before matching."""


class TrainConfig(_Section):
    """Local training of one client in one round."""

    local_steps: Positive = 20
    batch_size: Annotated[int, Field(ge=2)] = 64
    class_batch: Annotated[int, Field(ge=2)] = 4
    """Images of a class or cell in a step, at least; a client with more of them than fit into
    `batch_size` draws some for each step."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.3
    """Adam's in the first round, on the scores; on the weights of fedavg, by default 0.02."""
    learning_rate_final: Annotated[float, Field(gt=0)] = 0.01
    """Reached along a half cosine in the last round; equal to the first for no schedule."""
    moving_average_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Adam's on the moving averages of the feature differences."""
    moving_average_start: Literal["zero", "uniform"] = "zero"
    """Where they start; uniform in +-1 / sqrt(features) is as published."""
    moving_average_loss: Literal["sum", "mean"] = "sum"
    """Over the features, of the squared error that Adam follows; with the mean, as published,
    gradients are small enough for Adam's epsilon to slow the smallest differences down."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of all convolutions but the encoder's first; bfloat16 is faster where hardware has it."""
    straight_through: Literal["scaled", "unscaled"] = "unscaled"
    annealing: Annotated[float, Field(ge=0, le=100)] = 1.0
    """How fast the masks of training turn from sampled to thresholded: 1 for in the last of the
    rounds, 2 for halfway; 0 for never, as published and by default where `output.mask` is
    sampled."""


class MadaConfig(_Section):
    """Mask-aware dynamic moving average, of PRISM alone; without it, the paper's PRISM-dagger.

    Off by default: once `flips` has subtracted the sampling noise, its damping only slows down.
    """

    enabled: bool = False
    space: Literal["score", "probability"] = "score"
    scores: Literal["damped", "replaced"] = "damped"
    """PRISM-alpha's averaged scores: moved by lambda as masks are, or at once, as published."""


class CodecConfig(_Section):
    """What travels each way."""

    up: Literal["raw", "entropy", "flips", "float32"] = "flips"
    down: Literal["keyframe", "exact", "error-feedback"] = "error-feedback"
    scores: Literal["int16", "bfloat16"] = "int16"
    """Wire format of the layers that PRISM-alpha uploads as scores."""
    coordinates_per_round: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the coordinates that each client sends (flips only)."""
    error_feedback_step: Annotated[float, Field(gt=0, le=1000)] = 0.5
    """Quantiser step of the error-feedback downlink, in standard deviations of a sampled mask."""


class PrivacyConfig(_Section):
    """What protects the clients' images; enforced on the client."""

    mechanism: Literal["none", "moments", "mask-noise"] = "none"
    epsilon: Annotated[float, Field(ge=1e-3, le=1e4)] = 10.0
    """Of the whole run for "moments", of a single round for "mask-noise"."""
    delta: Annotated[float, Field(ge=1e-15, lt=1)] = 1e-5
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Bound on the L2 norm of a client's change of theta in a round (mask-noise only)."""
    require: bool = False
    """Refuse clients whose software cannot apply the mechanism."""

    @model_validator(mode="before")
    @classmethod
    def _unseeded(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "seed" in raw:
            raise ValueError(
                "there is no seed: whoever knew it could subtract the noise, which comes from the "
                "operating system's entropy alone"
            )
        return raw


class RoundConfig(_Section):
    """How the server runs rounds."""

    min_clients: Positive | None = None
    """Live clients before a round opens; by default `data.clients`."""
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the cohort whose updates suffice when the deadline passes."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 600.0
    lease_seconds: Annotated[float, Field(gt=0)] = 30.0


class OutputConfig(_Section):
    """What the server writes while it runs."""

    sample_every: Annotated[int, Field(ge=0)] = 5
    """Rounds between pictures; 0 leaves only those of evaluated rounds and the last."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Rounds between evaluations, where the server has evaluation data."""
    mask: Literal["sample", "threshold"] = "threshold"
    """How the exported mask comes from theta: sampled, or [theta > 1/2]."""
    average: Share = 0.1
    """Models are of the mean state over about this last share of the rounds; 0 for the last."""


class RunConfig(_Section):
    """One run, whole. Equal configs have equal digests and, on CPU, equal results."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    rounds: Positive = 40
    method: Literal["prism", "fedpm", "fedavg"] = "prism"
    alpha: Share = 0.0
    """Share of the masked layers, counted from the last, that upload scores (PRISM-alpha)."""
    sharpening: Annotated[float, Field(ge=1, le=1000)] = 10.0
    """Factor by which the scores grow over the whole run by themselves, on both sides alike."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    encoder: EncoderConfig = EncoderConfig()
    train: TrainConfig = TrainConfig()
    mada: MadaConfig = MadaConfig()
    codec: CodecConfig = CodecConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    round: RoundConfig = RoundConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, raw: Any) -> Any:
        """Fill in the defaults that follow from other keys."""
        return with_defaults(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        self._check_classes()
        if self.codec.coordinates_per_round < 1 and self.codec.up != "flips":
            raise ValueError('codec.coordinates_per_round below 1 needs codec.up = "flips"')
        if self.method != "prism" and self.alpha > 0:
            raise ValueError('alpha above 0 needs method = "prism"')
        if self.method != "prism" and self.mada.enabled:
            raise ValueError('mada.enabled needs method = "prism"')
        if self.method != "prism" and self.sharpening != 1:
            raise ValueError('sharpening above 1 needs method = "prism"')
        if self.method == "fedpm" and self.codec.coordinates_per_round < 1:
            raise ValueError('codec.coordinates_per_round below 1 needs method = "prism"')
        if (self.method == "fedavg") != (self.codec.up == "float32"):
            raise ValueError(f'codec.up = "{self.codec.up}" is not for method = "{self.method}"')
        if self.method == "fedavg" and self.codec.down != "keyframe":
            raise ValueError('method = "fedavg" needs codec.down = "keyframe"')
        if self.privacy.require and self.privacy.mechanism == "none":
            raise ValueError("privacy.require needs a privacy.mechanism to require")
        if self.privacy.mechanism == "mask-noise" and self.method == "fedavg":
            raise ValueError('privacy.mechanism = "mask-noise" needs a method that trains masks')
        return self

    def _check_classes(self) -> None:
        data = self.data
        if data.labels == "use" and not data.classes:
            raise ValueError(
                'data.labels = "use" needs data.classes: the names of the sub-folders, such as '
                '["cat", "dog"]'
            )
        if len(set(data.classes)) < len(data.classes):
            raise ValueError("data.classes: a name stands there twice")
        brought = brought_classes(data.name, data.attributes)
        if data.classes and brought and data.classes != brought:
            raise ValueError(
                f"data.classes: {data.name} brings its own, {', '.join(brought)}: leave them out"
            )
        if data.attributes and data.name != "celeba":
            raise ValueError('data.attributes needs data.name = "celeba"')
        if data.labels != "ignore" and self.train.class_batch > self.train.batch_size:
            raise ValueError("train.class_batch is more than train.batch_size")
        if self.uses_cells and self.privacy.mechanism != "none":
            raise ValueError(
                f'privacy.mechanism = "{self.privacy.mechanism}" needs data.labels other than '
                '"cells": nothing protects the table of cells that each client sends'
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that are drawn by themselves; none where labels are ignored."""
        return self.data.classes if self.data.labels == "use" else ()

    @property
    def uses_cells(self) -> bool:
        """Whether cells of similar images stand for classes."""
        return self.data.labels == "cells"

    @property
    def channels(self) -> int:
        """Image channels, resolved."""
        return self.model.channels or 1

    @property
    def min_clients(self) -> int:
        """Live clients before a round opens, resolved."""
        return self.round.min_clients or self.data.clients

    def run_id(self) -> bytes:
        """SHA-256 of the resolved config, the same for equal configs."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).digest()

    def to_toml(self) -> str:
        """The resolved config; reading it back gives an equal one."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def load_config(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a config file and apply `key=value` overrides.

    Raises:
        ConfigError: with one line per mistake, each naming its key.
    """
    return _validated(read_config(path, overrides), str(path))


def parse_config(text: str, overrides: Iterable[str] = (), source: str = "config") -> RunConfig:
    """Parse TOML text into a config; errors as in `load_config`."""
    return _validated(_raw(text, overrides, source), source)


def read_config(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a config file and overrides say, without defaults and not validated.

    Raises:
        ConfigError: the file cannot be read or is no TOML, or an override is not `key=value`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file") from error
    return _raw(text, overrides, str(path))


def _raw(text: str, overrides: Iterable[str], source: str) -> dict[str, Any]:
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    for override in overrides:
        apply_override(raw, override)
    return raw


def _validated(raw: dict[str, Any], source: str) -> RunConfig:
    try:
        # TOML has no tuples, and JSON's strict mode reads its lists as such.
        return RunConfig.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in mistakes(error))) from error
