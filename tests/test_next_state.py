"""The states that rounds end in, pinned: no codec and no downlink may change a bit of them.

Updates are drawn with the integer streams alone, so the digests are those of every platform.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from common.codecs import mask_codec, score_codec, weight_codec
from common.config import RunConfig, parse_config
from common.downlink import apply_steps, initial_state
from common.layout import mask_context, update_layout
from common.masks import pack
from common.seeding import uniform16
from common.state import GlobalState, sigma
from server.broadcast import Broadcast
from server.methods import make_aggregator

CLIENTS = 5
ROUNDS = 5
BASE = """
rounds = 8
sharpening = 20
[model]
width = 2
image_size = 16
latent = 8
[data]
clients = 5
labels = "ignore"
[codec]
error_feedback_step = 0.3
error_feedback_step_final = 0.3
"""
CASES = {
    "flips": ("codec.up=flips",),
    "raw, MADA": ("codec.up=raw", "mada.enabled=true"),
    "alpha": ("alpha=0.5", "mada.enabled=true", "mada.space=probability"),
    "scores replaced": ("alpha=0.5", "mada.enabled=true", "mada.scores=replaced"),
    # Not every round of these sharpens.
    "many rounds": ("rounds=90",),
    "fedpm": ("method=fedpm", "sharpening=1"),
    "fedavg": ("method=fedavg", "sharpening=1", "codec.up=float32"),
}
PINS = {
    "flips": "0e0f944a 668864f0 4ffbf01e a1007f4c 2e04ed01",
    "raw, MADA": "6ea23fab 47877597 d1dee4cb 596aae71 33466d27",
    "alpha": "2609abde d3718ad2 db058cc3 2c02435a 9aee6694",
    "scores replaced": "6ccda090 30bc54c2 17745252 92b43ffb 548018a5",
    "many rounds": "3ad36654 7290137c 59980a57 8fb98f9c 444edb11",
    "fedpm": "ff373afe 587074fe 7fb621cb e779aaba 82070c24",
    "fedavg": "4ed5c104 2c98aabb cf4f3828 2a602250 0b314e91",
}
"""The first four bytes of each round's digest, where the downlink loses nothing."""
FEEDBACK_PINS = {
    "flips": "356a803f f85cf4b1 b5a3a8de 51332f98 b0c17908",
    "raw, MADA": "edd5ffe8 7e53abff 24bc87e9 ada37225 d8f22031",
    "alpha": "4db81ec6 f2d1f4ff 4a3ffccf 68e3e9f9 c690167c",
    "scores replaced": "157dcdd1 62958da7 94473885 ad07cf7b 6c7c08b1",
    "many rounds": "eae74f18 7424c363 956cb23d 6a2ef2ed 83acd0df",
    "fedpm": "771e1b68 159795de 8b9d54a4 60b3135f d8c98aa6",
}


def payloads(config: RunConfig, state: GlobalState, rank: int) -> list[bytes]:
    """An update of a client that drifted from the state."""
    drawn = uniform16(state.dimension, config.seed, "test-update", state.round, rank)
    drift = drawn.astype(np.int64) - 32768
    out = []
    for segment in update_layout(config):
        part = segment.slice
        if segment.kind == "weight":
            weights = state.weights[part] + (drift[part] / 2**18).astype(np.float32)
            out.append(weight_codec(segment.codec).encode(weights))
            continue
        scores = np.clip(state.scores[part] + drift[part] // 64, -32000, 32000).astype(np.int16)
        if segment.kind == "score":
            out.append(score_codec(segment.codec).encode(scores))
            continue
        u = uniform16(state.dimension, config.seed, "test-mask", state.round, rank)[part]
        mask = pack(u < sigma(scores))
        context = mask_context(config, state, segment, rank, CLIENTS)
        out.append(mask_codec(segment.codec).encode(mask, context))
    return out


def states(config: RunConfig) -> Sequence[GlobalState]:
    """The state of every round; a client that follows by differences ends in the same."""
    broadcast = Broadcast(config, initial_state(config))
    held, out = broadcast.state, []
    for _ in range(ROUNDS):
        aggregator = make_aggregator(config, broadcast.state, CLIENTS)
        for rank in range(CLIENTS):
            update = payloads(config, broadcast.state, rank)
            aggregator.fold(aggregator.decode(update, rank))
        closed = aggregator.close()
        out.append(broadcast.publish(closed))
        if config.codec.down != "error-feedback":
            assert closed.state is broadcast.state, "the downlink loses and adds nothing"
        held = apply_steps(config, held, broadcast.steps((held.round, held.digest())))
        assert held.digest() == broadcast.digest
    return out


@pytest.mark.parametrize(
    ("down", "case"),
    [
        *(("keyframe", case) for case in PINS),
        *(("exact", case) for case in PINS if case != "fedavg"),
        *(("error-feedback", case) for case in FEEDBACK_PINS),
    ],
)
def test_states_are_what_they_were(down: str, case: str) -> None:
    config = parse_config(BASE, [*CASES[case], f"codec.down={down}"])
    digests = [state.digest()[:4].hex() for state in states(config)]
    assert digests == (FEEDBACK_PINS if down == "error-feedback" else PINS)[case].split()
