"""One local step of ours against the published recipe's, on the same work, in one run.

The loss of the first step is compared on equal masks and noise; then both are timed in turn,
the fastest of some repeats each. On one thread that is in CPU seconds, so that what else the
machine does counts for neither; on several in seconds of the clock. VGG-19's weights are random,
which costs the same.

    python -m benchmarks.step_speed --precision bfloat16
    python -m benchmarks.step_speed --batch 8 --threads 2 --json
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer

from benchmarks.published import PublishedRecipe
from client.loss import Moments, real_moments
from client.trainer import PrismTrainer
from common.config import RunConfig, parse_config
from common.downlink import initial_state
from common.encoders import FeatureEncoder, load_small, load_vgg19_bn
from common.model.architecture import Architecture
from common.model.frozen import frozen_weights
from common.seeding import derive_seed
from common.state import SCORE_UNIT

CLIENT: Final = "client-0"
CPU: Final = torch.device("cpu")


@dataclass(frozen=True)
class Compared:
    """Losses of the same steps, then seconds a step.

    Attributes:
        ours: losses of our steps.
        published: losses of the reference's, on the same masks and noise.
        ours_seconds: of our fastest steps, each.
        published_seconds: likewise of the reference.
    """

    ours: tuple[float, ...]
    published: tuple[float, ...]
    ours_seconds: float
    published_seconds: float

    @property
    def ratio(self) -> float:
        """How many of our steps take the time of one of the reference's."""
        return self.published_seconds / self.ours_seconds

    @property
    def loss_error(self) -> float:
        """The relative difference of the first step's losses, on the same scores.

        Those of later steps are on other scores: Adam's first steps are the signs of gradients,
        and rounding turns the smallest.
        """
        return abs(self.ours[0] - self.published[0]) / abs(self.published[0])


def step_config(
    width: int, batch: int, steps: int, image_size: int = 32, precision: str = "float32"
) -> RunConfig:
    """The published sizes but for what is given; the rest of the step as released."""
    return parse_config(
        f"[model]\nwidth = {width}\nimage_size = {image_size}\n"
        f"[train]\nbatch_size = {batch}\nlocal_steps = {steps}\n"
        f'straight_through = "scaled"\nprecision = "{precision}"\n'
        "moving_average_leak = 0\n"
        '[data]\nname = "mnist"\nlabels = "ignore"'
    )


def compare(config: RunConfig, encoder: FeatureEncoder, repeats: int) -> Compared:
    """Losses of `local_steps` steps on the same draws, then the time of one step of each.

    Args:
        config: the run.
        encoder: the frozen encoder.
        repeats: how often each side's steps are timed, after once that is not.
    """
    architecture, state = Architecture.of(config), initial_state(config)
    real = _some_moments(config, encoder)
    scores = torch.from_numpy(state.scores.astype(np.float32) / np.float32(SCORE_UNIT))
    weights = torch.from_numpy(frozen_weights(architecture, config.seed))
    reference = PublishedRecipe(config, encoder, real, weights, scores)
    trainer = PrismTrainer(config, encoder, real, CPU)

    ours: list[float] = []
    trainer.train(state, CLIENT, lambda _, loss: ours.append(loss))
    noise = torch.Generator()
    noise.manual_seed(derive_seed(config.seed, "local-noise", state.round, CLIENT))
    published = []
    for _ in range(config.train.local_steps):
        z = torch.randn(config.train.batch_size, architecture.latent, generator=noise)
        uniform = torch.rand(architecture.dimension, generator=noise)
        published.append(reference.step(z, uniform.numpy()))

    z = torch.randn(config.train.batch_size, architecture.latent)

    def reference_steps() -> None:
        for _ in range(config.train.local_steps):
            reference.step(z)

    seconds = _fastest([lambda: trainer.train(state, CLIENT), reference_steps], repeats)
    per_step = [total / config.train.local_steps for total in seconds]
    return Compared(tuple(ours), tuple(published), *per_step)


def _some_moments(config: RunConfig, encoder: FeatureEncoder) -> Moments:
    size = config.model.image_size
    images = torch.randint(
        0, 256, (32, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return real_moments(encoder, [images], CPU)


def _fastest(jobs: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Seconds of the fastest run of each job, the jobs taking turns."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = [float("inf")] * len(jobs)
    for repeat in range(repeats + 1):
        for index, job in enumerate(jobs):
            started = clock()
            job()
            if repeat:
                best[index] = min(best[index], clock() - started)
    return best


def main(
    batch: Annotated[int, typer.Option(min=2, help="Generated images a step.")] = 64,
    width: Annotated[int, typer.Option(min=1, help="Width of the generator.")] = 64,
    encoder: Annotated[str, typer.Option(help="vgg19_bn or small.")] = "vgg19_bn",
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed together.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="How often to time them.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    precision: Annotated[str, typer.Option(help="Of ours: float32 or bfloat16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Time one local step of ours and of the published recipe, and compare their losses."""
    torch.set_num_threads(threads)
    load = load_vgg19_bn(random_seed=1) if encoder == "vgg19_bn" else load_small()
    compared = compare(step_config(width, batch, steps, precision=precision), load, repeats)
    facts = {
        "batch": batch,
        "width": width,
        "encoder": encoder,
        "threads": threads,
        "precision": precision,
        **asdict(compared),
        "loss_error": compared.loss_error,
        "ratio": compared.ratio,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    if as_json:
        print(json.dumps(facts))
        return
    print(
        f"width {width}, batch {batch}, {encoder}, {threads} thread(s), {precision}: "
        f"published {compared.published_seconds:.3f} s, ours {compared.ours_seconds:.3f} s, "
        f"{compared.ratio:.2f} times as fast; losses differ by {compared.loss_error:.1e}"
    )


if __name__ == "__main__":
    typer.run(main)
