"""What a run starts from: its seed, or the state that another run was in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from common.config import RunConfig, load_config
from common.downlink import initial_state
from common.errors import ConfigError, PayloadError, StorageError
from common.files import sealed, unsealed, write_atomically
from common.model.architecture import Architecture
from common.state import GlobalState
from server.journal import Journal

_FILE: Final = "start.state"


def start_from(config: RunConfig, other: Path, out: Path) -> RunConfig:
    """The config of a run that starts from another's last state, of which it keeps a copy.

    A run that has begun already goes on; what it started from lies in its directory.

    Args:
        config: the run.
        other: directory of the other run, which no server is using.
        out: the run's directory.

    Raises:
        ConfigError: the other run is in use, closed no round, or has another generator; or a run
            is in `out` that started from its seed.
        StorageError: the other run is damaged.
        OSError: the copy cannot be written.
    """
    if (held := out / "config.toml").exists():
        if load_config(held).start is None:
            raise ConfigError(f"{out} holds a run that started from its seed: --from is too late")
        return config
    theirs = load_config(other / "config.toml")
    _check_alike(config, theirs, other)
    journal = Journal(other, theirs)
    try:
        point = journal.recover().checkpoint
    finally:
        journal.close()
    if point is None:
        raise ConfigError(f"{other} has closed no round yet: there is nothing to start from")
    state = GlobalState(0, point.state.values)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / _FILE, sealed(state.to_bytes()))
    return config.model_copy(update={"start": state.digest().hex()})


def start_state(config: RunConfig, out: Path) -> GlobalState:
    """State 0 of a run; clients fetch it where it does not follow from the seed.

    Raises:
        StorageError: the copy of another run's state is gone, or is another one.
    """
    state = initial_state(config)
    if config.start is None:
        return state
    path = out / _FILE
    try:
        content = unsealed(path.read_bytes())
        state = GlobalState.from_bytes(0, content, state.dimension, str(state.values.dtype))
    except (OSError, ValueError, PayloadError) as error:
        raise StorageError(f"cannot read what the run started from, {path}: {error}") from error
    if state.digest().hex() != config.start:
        raise StorageError(
            f"{path} is not the state that the run's config.toml says it started from"
        )
    return state


def _check_alike(config: RunConfig, theirs: RunConfig, other: Path) -> None:
    """Scores and weights mean something for one generator alone."""
    if config.seed != theirs.seed:
        raise ConfigError(
            f"the generator of {other} is of seed {theirs.seed}: give --set seed={theirs.seed} too"
        )
    if Architecture.of(config) != Architecture.of(theirs):
        raise ConfigError(f"{other} has another generator: give the same [model] and classes")
    if (config.method == "fedavg") != (theirs.method == "fedavg"):
        raise ConfigError(f"{other} trained other values: its method is {theirs.method}")
