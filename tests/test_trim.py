"""Updates that lie far from the others are told apart, and taken back as if they had never come."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_config

from benchmarks.poison import attacked
from common.config import RunConfig
from common.downlink import initial_state
from common.masks import pack
from common.seeding import uniform16
from common.state import GlobalState, Values
from server.aggregate import Contribution
from server.figures import UNITS, Distance, Figures, from_cohort, table
from server.methods import make_aggregator
from server.trim import bound, left_out

MODEL = {"width": 2, "latent": 8}
RUNS = {
    "flips": {"codec": {"up": "flips"}},
    "raw": {},
    "half of the coordinates": {"codec": {"up": "flips", "coordinates_per_round": 0.5}},
    "alpha": {"codec": {"up": "flips"}, "alpha": 0.5},
    "scores alone": {"alpha": 1.0},
    "fedpm": {"method": "fedpm"},
    "fedpm, flips": {"method": "fedpm", "codec": {"up": "flips"}},
    "fedavg": {"method": "fedavg"},
}
CONFIGS = {name: tiny_config(model=MODEL, robust="trim", **run) for name, run in RUNS.items()}


def trained(config: RunConfig, state: GlobalState, name: str) -> Values:
    """What a client may have trained: each drifts its own way, some more than others."""
    drift = uniform16(state.dimension, 1, "test-trim", name).astype(np.int64) - 32768
    scale = 1 + 0.3 * len(name)
    if config.method == "fedavg":
        return state.weights + (drift * scale / 2**20).astype(np.float32)
    return (state.scores + drift * scale / 64).astype(np.int16)


def updates(
    config: RunConfig, state: GlobalState, clients: int, attackers: int = 0, attack: str = "none"
) -> dict[str, Contribution]:
    """A round's updates as the server decodes them; the first ones are tampered with."""
    names = [f"{'c' * (1 + rank % 2)}{rank}" for rank in range(clients)]
    encode = attacked(attack, names[:attackers])
    aggregator = make_aggregator(config, state, clients)
    out = {}
    for rank, name in enumerate(names):
        values = trained(config, state, name)
        payloads = encode(config, state, values, rank=rank, cohort_size=clients, client=name)
        out[name] = aggregator.decode(payloads, rank)
    return out


def figures_of(made: dict[str, Contribution]) -> dict[str, Figures]:
    return {name: update.figures for name, update in made.items()}


@pytest.mark.parametrize("name", [name for name in RUNS if name != "half of the coordinates"])
@pytest.mark.parametrize("attack", ["invert", "fill", "random"])
@pytest.mark.parametrize(("clients", "attackers"), [(5, 1), (10, 3)])
def test_attackers_are_left_out_and_nobody_else(
    name: str, attack: str, clients: int, attackers: int
) -> None:
    config = CONFIGS[name]
    made = figures_of(updates(config, initial_state(config), clients, attackers, attack))
    assert left_out(config, made) == tuple(sorted(list(made)[:attackers]))
    assert left_out(config, dict(reversed(made.items()))) == left_out(config, made)
    assert left_out(config.model_copy(update={"robust": "none"}), made) == ()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("clients", [1, 2, 3, 10])
def test_honest_clients_stay(config: RunConfig, clients: int) -> None:
    assert left_out(config, figures_of(updates(config, initial_state(config), clients))) == ()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_is_taken_back_was_never_there(config: RunConfig) -> None:
    state = initial_state(config)
    made = list(updates(config, state, 9).values())
    gone = (1, 4, 5)
    never = make_aggregator(config, state, 9)
    for rank, update in enumerate(made):
        if rank not in gone:
            never.fold(update)
    taken = make_aggregator(config, state, 9)
    for update in reversed(made):
        taken.fold(update)
    for rank in gone:
        taken.unfold(made[rank])
    one, other = never.close(), taken.close()
    assert one.state.digest() == other.state.digest()
    assert (one.lam, one.clients) == (other.lam, other.clients) == (one.lam, 6)


def far(kind: str, count: int, *totals: int) -> list[Distance]:
    return [Distance(kind, total, count) for total in totals]  # type: ignore[arg-type]


def test_the_rule_in_numbers() -> None:
    # Half of the median more; four median deviations; 1 % of the parameters.
    assert bound(far("mask", 1000, 100, 100, 100, 101, 99)) == 150
    assert bound(far("mask", 1000, 100, 80, 120, 75, 125)) == 100 + 4 * 20
    assert bound(far("mask", 1000, 2, 2, 2)) == 2 + 10
    # Never beyond the middle to a mask drawn by tossing coins, nor below the median.
    assert bound(far("mask", 1000, 400, 400, 400)) == 450
    assert bound(far("mask", 1000, 600, 600, 600)) == 600
    # No such middle where values are no bits; their unit is a logit.
    unit = UNITS["score"]
    assert bound(far("score", 10, 4 * unit, 4 * unit, 4 * unit)) == 6 * unit
    assert bound(far("score", 100, 0, 0, 0)) == unit
    # Of an even number the upper median: of two nobody can say which is wrong.
    assert bound(far("mask", 1000, 1, 400)) >= 400


@given(totals=st.lists(st.integers(0, 1000), min_size=1, max_size=30), mask=st.booleans())
def test_fewer_than_half_are_left_out(totals: list[int], mask: bool) -> None:
    most = bound(far("mask" if mask else "score", 1000, *totals))
    assert sum(total > most for total in totals) * 2 < len(totals)


def bits_figures(bits: Sequence[Sequence[int]], like: Sequence[int], shared: bool) -> list[Figures]:
    packed = [pack(np.array(row, dtype=np.uint8)) for row in (*bits, like)]
    return [Figures.of(mask, packed[-1], shared=shared) for mask in packed[:-1]]


def test_the_table_of_a_round() -> None:
    bits = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    made = bits_figures(bits, [1, 0, 0, 0], shared=False)
    named = dict(zip("cab", made, strict=True))
    named["b"] = replace(named["b"], payload_bytes=7, seconds=1.23456)
    rows = table(named, ("b",))
    assert list(rows) == ["a", "b", "c"]
    assert [rows[name]["density"] for name in "cab"] == [0.5, 0.25, 1.0]
    assert [rows[name]["from_state"] for name in "cab"] == [0.25, 0.0, 0.75]
    away = np.abs(np.array(bits) - np.mean(bits, axis=0)).mean(axis=1)
    assert [rows[name]["from_cohort"] for name in "cab"] == pytest.approx(away)
    assert [rows[name]["left_out"] for name in "cab"] == [False, False, True]
    assert (rows["b"]["bytes"], rows["b"]["seconds"]) == (7, 1.235)
    # With a reference that all know, what counts is where each differs from it.
    shared = dict(zip("cab", bits_figures(bits, [1, 0, 0, 0], shared=True), strict=True))
    assert from_cohort(shared) == pytest.approx(from_cohort(named))
    assert from_cohort({"a": Figures(), "b": Figures()}) == {}


def test_a_large_mask_is_compared_in_some_positions() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (3, 50_000), dtype=np.uint8)
    reference = pack(bits[0])
    made = {str(i): Figures.of(pack(row), reference, shared=True) for i, row in enumerate(bits)}
    assert all(figure.said.size <= 4096 for figure in made.values())
    said = bits.astype(float) - bits[0]
    exact = np.abs(said - said.mean(axis=0)).mean(axis=1)
    apart = from_cohort(made)
    assert [apart[name] for name in "012"] == pytest.approx(exact, abs=0.02)


def test_the_benchmark_counts_who_was_left_out(tmp_path: Path) -> None:
    small = ["rounds=1", "train.local_steps=1", "train.batch_size=40", "model.width=2"]
    words = ["-m", "benchmarks.poison", "configs/quickstart.toml", "--json", "--out"]
    words += [str(tmp_path / "lines"), "--features", "small", "--samples", "20", "--threads", "1"]
    words += ["--partition", "iid", "--case", "3/1", "--robust", "trim"]
    words += [word for change in small for word in ("--set", change)]
    words += ["--attack", "absent", "--attack", "mixed"]
    once, again = (
        subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
        for _ in range(2)
    )
    assert once.returncode == 0, once.stderr
    absent, mixed = map(json.loads, once.stdout.splitlines())
    assert (absent["updates_of_attackers"], absent["updates_of_others"]) == (0, 2)
    assert (mixed["left_out_of_attackers"], mixed["left_out_of_others"]) == (1, 0)
    # What is in the file already is not run again.
    assert again.stdout == once.stdout == (tmp_path / "lines").read_text()
