"""From local scores to the payloads of an update."""

from __future__ import annotations

import numpy as np

from common.codecs import mask_codec, score_codec, weight_codec
from common.config import RunConfig
from common.layout import mask_context, update_layout
from common.seeding import derive_seed
from common.state import GlobalState, Values, sigma
from common.theory import MaskBits


def encode_update(
    config: RunConfig,
    state: GlobalState,
    values: Values,
    *,
    rank: int,
    cohort_size: int,
    client: str,
) -> tuple[bytes, ...]:
    """One payload per segment of the run's layout.

    Args:
        config: the run.
        state: the global state that training started from.
        values: (d,) int16 local scores, or (d,) float32 local weights.
        rank: the client's place in the cohort.
        cohort_size: clients in the cohort.
        client: names the stream that the mask is sampled from.
    """
    private = np.random.Generator(
        np.random.Philox(derive_seed(config.seed, "mask-sample", state.round, client))
    )
    # A state of its own refuses to give scores where there are weights, and the reverse.
    local = GlobalState(state.round, values)
    payloads = []
    for segment in update_layout(config):
        if segment.kind == "mask":
            codec = mask_codec(segment.codec)
            context = mask_context(config, state, segment, rank, cohort_size)
            mask = codec.sample(sigma(local.scores[segment.slice]), context, private)
            payloads.append(codec.encode(mask, context))
        elif segment.kind == "score":
            payloads.append(score_codec(segment.codec).encode(local.scores[segment.slice]))
        else:
            payloads.append(weight_codec(segment.codec).encode(local.weights[segment.slice]))
    return tuple(payloads)


def update_bits(config: RunConfig, state: GlobalState, values: Values) -> MaskBits | None:
    """What theory says that the mask of an update takes; None where it has no mask.

    Args:
        config: the run.
        state: the global state that training started from.
        values: (d,) as they are given to `encode_update`; so whatever noise they have is in
            these figures too, which then say no more than the update itself.
    """
    for segment in update_layout(config):
        if segment.kind == "mask":
            local = GlobalState(state.round, values)
            theta_t, theta_k = (sigma(s.scores[segment.slice]) for s in (state, local))
            return MaskBits.of(theta_t, theta_k)
    return None
