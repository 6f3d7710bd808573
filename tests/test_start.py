"""A new run that starts from another's last state."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support import running
from support_federation import TINY, federated

from common.config import RunConfig, load_config, parse_config
from common.errors import ConfigError, StorageError
from common.state import GlobalState
from server.journal import Journal
from server.start import start_from, start_state

pytestmark = pytest.mark.usefixtures("one_thread")


def last_values(out: Path) -> GlobalState:
    journal = Journal(out, load_config(out / "config.toml"))
    point = journal.recover().checkpoint
    journal.close()
    assert point is not None
    return point.state


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("earlier")
    asyncio.run(federated(parse_config(TINY, ["rounds=1"]), out))
    return out


def test_it_trains_on_from_that_state(earlier: Path, tmp_path: Path) -> None:
    config = parse_config(TINY, ["rounds=1", "train.local_steps=1", "sharpening=1"])
    before = last_values(earlier)
    asyncio.run(federated(config, tmp_path, start=earlier))
    held = load_config(tmp_path / "config.toml")
    assert held.start == GlobalState(0, before.values).digest().hex()
    assert held.run_id() != config.run_id()
    moved, fresh = last_values(tmp_path), start_state(config, tmp_path)
    # One step of training leaves it near what it started from, and far from the seed's.
    near, far = (abs(moved.scores - of.scores.astype(int)).mean() for of in (before, fresh))
    assert near < far / 4
    # It goes on by itself, from its own copy, and from nothing else.
    longer = parse_config(TINY, ["rounds=2", "train.local_steps=1", "sharpening=1"])
    asyncio.run(federated(longer, tmp_path))
    assert load_config(tmp_path / "config.toml").start == held.start
    assert start_from(longer, tmp_path / "gone", tmp_path) == longer
    (tmp_path / "start.state").write_bytes((tmp_path / "start.state").read_bytes()[:-1])
    with pytest.raises(StorageError, match="cannot read what the run started from"):
        start_state(held, tmp_path)
    (tmp_path / "start.state").unlink()
    with pytest.raises(StorageError, match="cannot read what the run started from"):
        start_state(held, tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["seed=9"], "is of seed 1: give --set seed=1"),
        (["model.width=3"], "has another generator"),
        (["data.labels=ignore"], "has another generator"),
        (["method=fedavg"], "its method is prism"),
    ],
)
def test_another_generator_is_refused(
    earlier: Path, tmp_path: Path, changes: list[str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        start_from(parse_config(TINY, changes), earlier, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_started_from(earlier: Path, tmp_path: Path) -> None:
    config: RunConfig = parse_config(TINY)
    with pytest.raises(ConfigError, match="cannot read config"):
        start_from(config, tmp_path / "none", tmp_path / "new")
    with pytest.raises(ConfigError, match="started from its seed: --from is too late"):
        start_from(config, earlier, earlier)

    async def in_use() -> None:
        async with running(config, tmp_path / "open"):
            with pytest.raises(ConfigError, match="another server is using"):
                start_from(config, tmp_path / "open", tmp_path / "new")

    asyncio.run(in_use())
    with pytest.raises(ConfigError, match="has closed no round yet"):
        start_from(config, tmp_path / "open", tmp_path / "new")
    assert not (tmp_path / "new").exists()
