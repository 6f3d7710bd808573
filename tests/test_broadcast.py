"""The downlink: whoever is how far behind, by whichever codec, ends with the server's state."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.update import encode_update
from common.codecs import KEYFRAME, KEYFRAME_ENTROPY
from common.config import RunConfig, parse_config
from common.downlink import StateStep, apply_steps, feedback_units, initial_state
from common.errors import PayloadError
from common.server_update import growth_factor, sharpened
from common.state import THETA_MAX, GlobalState, logit, sigma
from server.aggregate import Closed
from server.broadcast import HISTORY, Broadcast
from server.methods import make_aggregator

CLIENTS = 4
BASE = "rounds = 30\n[model]\nwidth = 4\nimage_size = 16\nlatent = 16\n[data]\nclients = 4"


def config_of(down: str, *more: str) -> RunConfig:
    return parse_config(BASE, [f"codec.down={down}", "codec.up=flips", *more])


def closed_round(config: RunConfig, state: GlobalState) -> Closed:
    """A real aggregation of clients that drift a little from the state."""
    aggregator = make_aggregator(config, state, CLIENTS)
    for rank in range(CLIENTS):
        drift = np.random.default_rng([state.round, rank]).normal(0, 400, state.dimension)
        scores = np.clip(state.scores + drift, -20000, 20000).astype(np.int16)
        payloads = encode_update(
            config, state, scores, rank=rank, cohort_size=CLIENTS, client=f"c{rank}"
        )
        aggregator.fold(aggregator.decode(payloads, rank))
    return aggregator.close()


@pytest.mark.parametrize(
    "more",
    [(), ("codec.up=raw",), ("alpha=0.5", "mada.space=probability"), ("sharpening=50",)],
)
@pytest.mark.parametrize("down", ["keyframe", "exact", "error-feedback"])
def test_every_lag_ends_with_the_servers_state(down: str, more: tuple[str, ...]) -> None:
    config = config_of(down, *more)
    broadcast = Broadcast(config, initial_state(config))
    states = [broadcast.state]
    states += [broadcast.publish(closed_round(config, broadcast.state)) for _ in range(5)]
    assert broadcast.steps((5, states[5].digest())) == ()
    for held in states[:-1]:
        steps = broadcast.steps((held.round, held.digest()))
        assert apply_steps(config, held, steps).digest() == broadcast.digest
    for held in (None, (3, b"another state"), (99, states[3].digest())):
        (keyframe,) = broadcast.steps(held)
        assert keyframe.codec in (KEYFRAME.wire, KEYFRAME_ENTROPY.wire)
        assert apply_steps(config, states[0], [keyframe]).digest() == broadcast.digest
    (last,) = broadcast.steps((4, states[4].digest()))
    raw = 2 * states[0].dimension
    assert len(last.payload) == raw if down == "keyframe" else len(last.payload) < raw / 3


@pytest.mark.parametrize("down", ["keyframe", "exact", "error-feedback"])
def test_a_restart_changes_nothing(down: str) -> None:
    config = config_of(down)
    broadcast = Broadcast(config, initial_state(config))
    for _ in range(3):
        broadcast.publish(closed_round(config, broadcast.state))
    again = Broadcast(config, initial_state(config))
    again.restore(broadcast.state, broadcast.snapshot())
    held = (0, initial_state(config).digest())
    assert again.steps(held) == broadcast.steps(held)
    closed = closed_round(config, broadcast.state)
    assert again.publish(closed).digest() == broadcast.publish(closed).digest()


def test_error_feedback_loses_nothing_in_the_long_run() -> None:
    """Held at one target, the broadcast state ends within half a step of it everywhere."""
    config = config_of("error-feedback", "sharpening=1", "codec.error_feedback_step_final=0.5")
    broadcast = Broadcast(config, initial_state(config))
    target = closed_round(config, broadcast.state).state
    broadcast.publish(Closed(target, None, CLIENTS))
    first = np.abs(target.scores.astype(int) - broadcast.state.scores)
    assert first.any()
    for _ in range(40):
        # The aggregation asks for no further move from where the clients are.
        broadcast.publish(Closed(GlobalState(0, broadcast.state.scores), None, CLIENTS))
    left = np.abs(target.scores.astype(int) - broadcast.state.scores)
    theta = sigma(broadcast.state.scores) / 65536
    step = config.codec.error_feedback_step * 2048 / np.sqrt(theta * (1 - theta))
    assert (left <= 0.76 * step + 1).all()


def test_the_quantisers_step_falls_from_the_first_round_to_the_last() -> None:
    config = config_of(
        "error-feedback",
        "rounds=5",
        "codec.error_feedback_step=0.5",
        "codec.error_feedback_step_final=0.25",
    )
    # 0.5, then 0.25 + 0.25 (1 - p^2 (3 - 2 p)) at quarters, in units of 1/2048, rounded down.
    assert [feedback_units(config, t) for t in range(7)] == [1024, 944, 768, 592, 512, 512, 512]


@given(
    st.lists(st.integers(-32768, 32767), min_size=1),
    st.floats(1, 1000),
    st.integers(1, 500),
)
def test_sharpening_grows_scores_evenly_up_to_the_clamp(
    values: list[int], total: float, rounds: int
) -> None:
    config = parse_config("", [f"sharpening={total}", f"rounds={rounds}"])
    before = np.array([*values, 1000, -1000], dtype=np.int16)
    state = GlobalState(0, before)
    for round_ in range(1, rounds + 1):
        state = sharpened(config, GlobalState(round_, state.scores))
    limit, after = int(logit(np.array([THETA_MAX], np.uint16))[0]), state.scores.astype(int)
    beyond = np.abs(before.astype(int)) >= limit
    assert np.array_equal(after[beyond], before[beyond])
    assert (np.abs(after) >= np.abs(before.astype(int))).all()
    assert (np.abs(after)[~beyond] <= limit).all()
    assert (np.sign(after) == np.sign(before)).all()
    assert after[-2] == -after[-1]
    # A growth below half a unit a step rounds to none; at 1000 units that is 0.05 % of it.
    if total > 1.1:
        assert after[-2] == pytest.approx(min(1000 * total, limit), rel=0.02)


def test_sharpening_is_the_same_everywhere() -> None:
    config = parse_config("", ["sharpening=10", "rounds=60"])
    scores = np.arange(-32768, 32768, dtype=np.int16)
    digest = hashlib.sha256(sharpened(config, GlobalState(1, scores)).scores.astype("<i2"))
    assert growth_factor(10.0, 60) == 68100
    assert digest.hexdigest()[:16] == "30559d712289345d"


def test_the_history_is_bounded() -> None:
    config = config_of("exact")
    broadcast = Broadcast(config, initial_state(config))
    first = broadcast.digest
    for _ in range(HISTORY + 2):
        broadcast.publish(closed_round(config, broadcast.state))
    (keyframe,) = broadcast.steps((0, first))
    assert keyframe.codec == KEYFRAME_ENTROPY.wire


def test_damaged_steps_are_refused() -> None:
    for down in ("exact", "error-feedback"):
        config = config_of(down)
        start = initial_state(config)
        broadcast = Broadcast(config, start)
        broadcast.publish(closed_round(config, start))
        (step,) = broadcast.steps((0, start.digest()))
        for cut in range(0, len(step.payload), max(1, len(step.payload) // 40)):
            with pytest.raises(PayloadError):
                apply_steps(config, start, [StateStep(step.codec, 1, step.payload[:cut])])
        with pytest.raises(PayloadError, match="does not start"):
            apply_steps(config, start, [StateStep(step.codec, 2, step.payload)])
        with pytest.raises(PayloadError, match="no state codec"):
            apply_steps(config, start, [StateStep(77, 1, step.payload)])
