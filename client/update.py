"""From local scores to the payloads of an update."""

from __future__ import annotations

import numpy as np

from common.codecs import mask_codec, score_codec
from common.config import RunConfig
from common.layout import SegmentSpec, mask_context, update_layout
from common.seeding import derive_seed
from common.state import GlobalState, Scores, sigma


def encode_update(
    config: RunConfig,
    state: GlobalState,
    scores: Scores,
    *,
    rank: int,
    cohort_size: int,
    client: str,
) -> tuple[bytes, ...]:
    """One payload per segment of the run's layout.

    Args:
        config: the run.
        state: the global state that training started from.
        scores: (d,) int16 local scores.
        rank: the client's place in the cohort.
        cohort_size: clients in the cohort.
        client: names the stream that the mask is sampled from.
    """
    private = np.random.Generator(
        np.random.Philox(derive_seed(config.seed, "mask-sample", state.round, client))
    )
    payloads = []
    for segment in update_layout(config):
        local = scores[segment.slice]
        if segment.kind == "mask":
            codec = mask_codec(segment.codec)
            context = mask_context(config, state, segment, rank, cohort_size)
            mask = codec.sample(sigma(local), context, private)
            payloads.append(codec.encode(mask, context))
        else:
            payloads.append(score_codec(segment.codec).encode(local))
    return tuple(payloads)


def wire_codec(segment: SegmentSpec) -> int:
    """The wire enum value of a segment's codec."""
    codec = mask_codec if segment.kind == "mask" else score_codec
    return codec(segment.codec).wire
