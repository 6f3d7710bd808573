"""The sections of a run's config, and what each key means.

What stands below a key is its description: `prism config` and docs/configuration.md print it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from common.catalogue import DATA_SETS

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Names = tuple[Name, ...]


def _known_data(name: str) -> str:
    if name not in DATA_SETS:
        raise ValueError(f"choose {', '.join(DATA_SETS)}")
    return name


class Section(BaseModel):
    """Keys that belong together; no others are taken."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class DataConfig(Section):
    """What the clients hold, and how one data set is split among them."""

    name: Annotated[
        str, AfterValidator(_known_data), Field(json_schema_extra={"enum": [*DATA_SETS]})
    ] = "digits"
    """The images of a run: a data set that is known, or a folder of your own."""
    partition: Literal["iid", "shards", "dirichlet", "attribute"] = "iid"
    """How one data set is divided: at random, shards of images sorted by label, Dirichlet shares of
    each class, or whole combinations of attributes (CelebA)."""
    clients: Positive = 3
    """Partitions that the data set is cut into; the usual number of clients."""
    shards_per_client: Positive = 4
    """Of partition = "shards": the fewer, the less classes a client has."""
    dirichlet_alpha: Annotated[float, Field(gt=0)] = 0.005
    """Of partition = "dirichlet": the smaller, the more unequal the shares."""
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


class ModelConfig(Section):
    """The frozen generator."""

    width: Annotated[int, Field(ge=1, le=1024)] = 16
    """Channels of the last block; each block before it has twice as many."""
    image_size: Literal[16, 32, 64, 128] = 32
    """Height and width, in pixels, to which the largest centred square of each image is resized."""
    channels: Literal[1, 3] | None = None
    """Grey or colour; by default what `data.name` has."""
    latent: Annotated[int, Field(ge=1, le=4096)] = 128
    """Entries of the noise vector that an image is drawn from."""
    fan_in: Literal["inputs", "torch"] = "inputs"
    """By which the magnitude of the first layer's weights is chosen: the inputs that meet in an
    output, or what torch takes for the fan-in of a transposed convolution, as published."""


class EncoderConfig(Section):
    """The frozen feature extractor."""

    name: Literal["small", "vgg19_bn"] = "small"
    """Bundled and quick, or as published; its weights are downloaded, or given to each client."""
    layers: Annotated[tuple[int, ...] | None, Field(strict=False)] = None
    """Feature layers to match, by index; by default all of them."""
    pool: Positive | None = None
    """Average-pool each feature map down to pool x pool before matching."""


class TrainConfig(Section):
    """Local training of one client in one round."""

    local_steps: Positive = 20
    """Steps that a client trains in a round; 100 in the paper."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images that a step generates."""
    class_batch: Annotated[int, Field(ge=2)] = 4
    """Images of a class or cell in a step, at least; a client with more of them than fit into
    `batch_size` draws some for each step."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.3
    """Adam's in the first round, on the scores; on the weights of fedavg, by default 0.02."""
    learning_rate_final: Annotated[float, Field(gt=0)] = 0.01
    """Reached along a half cosine in the last round; equal to the first for no schedule."""
    moving_average_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Adam's on the moving averages of the feature differences."""
    moving_average_leak: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of themselves that they lose in a step, so that a push that is no longer needed fades;
    0 for none, as published."""
    moving_average_start: Literal["zero", "uniform"] = "zero"
    """Where they start; uniform in +-1 / sqrt(features) is as published."""
    moving_average_loss: Literal["sum", "mean"] = "sum"
    """Over the features, of the squared error that Adam follows; with the mean, as published,
    gradients are small enough for Adam's epsilon to slow the smallest differences down."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of all convolutions but the encoder's first; bfloat16 is faster where hardware has it."""
    straight_through: Literal["scaled", "unscaled"] = "unscaled"
    """Gradient through a sampled mask: as it is, or times theta, as published."""
    annealing: Annotated[float, Field(ge=0, le=100)] = 1.0
    """How fast the masks of training turn from sampled to thresholded: 1 for in the last of the
    rounds, 2 for halfway; 0 for never, as published and by default where `output.mask` is
    sampled."""


class MadaConfig(Section):
    """Mask-aware dynamic moving average, of PRISM alone; without it, the paper's PRISM-dagger.

    Off by default: once `flips` has subtracted the sampling noise, its damping only slows down.
    """

    enabled: bool = False
    """Move the state by lambda, the share of a mask that a round would change."""
    space: Literal["score", "probability"] = "score"
    """What lambda moves: scores, or probabilities, as in the paper."""
    scores: Literal["damped", "replaced"] = "damped"
    """PRISM-alpha's averaged scores: moved by lambda as masks are, or at once, as published."""


class CodecConfig(Section):
    """What travels each way."""

    up: Literal["raw", "entropy", "flips", "float32"] = "flips"
    """How masks travel to the server; float32 is of fedavg alone."""
    down: Literal["keyframe", "exact", "error-feedback"] = "error-feedback"
    """How the state travels to the clients: whole, by replaying the round, or quantised."""
    scores: Literal["int16", "bfloat16"] = "int16"
    """Wire format of the layers that PRISM-alpha uploads as scores."""
    coordinates_per_round: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the coordinates that each client sends (flips only)."""
    error_feedback_step: Annotated[float, Field(gt=0, le=1000)] = 0.5
    """Quantiser step of the error-feedback downlink in the first round, in standard deviations of a
    sampled mask."""
    error_feedback_step_final: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """Reached along a half cosine, as near as integers tell, in the last round."""


class PrivacyConfig(Section):
    """What protects the clients' images; enforced on the client."""

    mechanism: Literal["none", "moments", "mask-noise"] = "none"
    """Release noisy moments once, add noise to each update, or promise nothing."""
    epsilon: Annotated[float, Field(ge=1e-3, le=1e4)] = 10.0
    """Of the whole run for "moments", of a single round for "mask-noise"."""
    delta: Annotated[float, Field(ge=1e-15, lt=1)] = 1e-5
    """Of the guarantee; below one in the number of images of a client."""
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


class RoundConfig(Section):
    """How the server runs rounds; all of it may be changed when the server is started again."""

    start_clients: Positive | None = None
    """Clients that are here before the first round opens; by default `min_clients` where that is
    given, else `data.clients`."""
    min_clients: Positive | None = None
    """Clients that are here before any later round opens; by default half of `data.clients`."""
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the clients that are here who are needed in a round."""
    oversampling: Annotated[float, Field(ge=1, le=100)] = 1.0
    """Ask this many times the clients that are needed, as far as there are so many; the round
    closes once 1 / `oversampling` of those who were asked have answered."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the updates that a round waits for which suffices when its deadline passes."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which a round closes with a quorum; who missed it is left out for a while."""
    lease_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds without a sign of life after which a client counts as gone."""
    grace_seconds: Annotated[float, Field(ge=0)] | None = None
    """Seconds for which a client that is gone without a word, or was here before the server was
    started again, is waited for; by default 60, and no longer than a deadline."""


class OutputConfig(Section):
    """What the server writes while it runs."""

    sample_every: Annotated[int, Field(ge=0)] = 5
    """Rounds between pictures; 0 leaves only those of evaluated rounds and the last."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Rounds between evaluations, where the server has evaluation data."""
    mask: Literal["sample", "threshold"] = "threshold"
    """How the exported mask comes from theta: sampled, or [theta > 1/2]."""
    average: Share = 0.2
    """Models are of the mean state over about this last share of the rounds; 0 for the last."""


OPERATIONAL: Final[Mapping[str, set[str] | bool]] = {
    "rounds": True,
    "schedule_rounds": True,
    "round": True,
    "output": {"sample_every", "evaluate_every"},
}
"""Sections and keys that are no part of a run's identity: whatever they say, the same updates make
the same states. How long the schedules are is part of it, however that comes about."""
