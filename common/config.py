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
from typing import Annotated, Any, Final, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from common.config_text import apply_override, flat, key_names, mistakes
from common.defaults import brought_classes, with_defaults
from common.errors import ConfigError
from common.sections import (
    OPERATIONAL,
    CodecConfig,
    DataConfig,
    EncoderConfig,
    MadaConfig,
    ModelConfig,
    OutputConfig,
    Positive,
    PrivacyConfig,
    RoundConfig,
    Section,
    Share,
    TrainConfig,
)

_MOST_SHOWN: Final = 3
"""Keys that a message about two configs names."""


class RunConfig(Section):
    """One run, whole. Equal configs have equal digests and, on CPU, equal results."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = "run"
    """What the run is called; `prism run` keeps it in runs/NAME."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Of everything that is random and shared: weights, scores, partitions, cohorts."""
    rounds: Positive = 40
    """Rounds after which the run is finished; more of them extend a run, finished or not."""
    schedule_rounds: Positive | None = None
    """Rounds over which the learning rate, annealing and sharpening take their course; after them
    all three stay as they ended. By default `rounds`, as it is when the run begins."""
    start: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Digest of the state that training starts from, where that is another run's; `--from` sets
    it. By default it follows from the seed."""
    method: Literal["prism", "fedpm", "fedavg"] = "prism"
    """What is trained: masks as in PRISM, masks as in FedPM, or weights."""
    alpha: Share = 0.0
    """Share of the masked layers, counted from the last, that upload scores (PRISM-alpha)."""
    sharpening: Annotated[float, Field(ge=1, le=1000)] = 10.0
    """Factor by which the scores grow over the whole run by themselves, on both sides alike."""
    robust: Literal["none", "trim"] = "none"
    """Of "trim", updates that lie far from the others do not count; see docs/operations.md."""
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
        if self.min_clients > self.start_clients:
            raise ValueError("round.min_clients is more than round.start_clients")
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
    def schedule_length(self) -> int:
        """Rounds that the schedules take, resolved."""
        return self.schedule_rounds or self.rounds

    @property
    def start_clients(self) -> int:
        """Clients that are here before the first round opens, resolved."""
        return self.round.start_clients or self.data.clients

    @property
    def min_clients(self) -> int:
        """Clients that are here before any later round opens, resolved."""
        return self.round.min_clients or self.start_clients

    @property
    def grace_seconds(self) -> float:
        """For which a client that is gone without a word is waited for, resolved."""
        return self.round.grace_seconds or 0.0

    def run_id(self) -> bytes:
        """SHA-256 of the resolved config but for operational keys, the same for equal runs."""
        canonical = json.dumps(self._identity(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).digest()

    def check_same_run(self, held: RunConfig, where: Path) -> None:
        """Compare with the config of the run that a directory holds.

        Raises:
            ConfigError: it is another run; naming the keys that differ, with both values.
        """
        mine = self.taking_up(held)._identity()
        ours, theirs = dict(flat(mine)), dict(flat(held._identity()))
        differing = [
            f"{key} = {_shown(theirs.get(key))} there, {_shown(ours.get(key))} here"
            for key in ours | theirs
            if ours.get(key) != theirs.get(key)
        ]
        if len(differing) > _MOST_SHOWN:
            differing[_MOST_SHOWN:] = [f"and {len(differing) - _MOST_SHOWN} more keys"]
        if differing:
            raise ConfigError(
                f"{where} holds another run ({'; '.join(differing)}): choose another --out, or "
                "its config.toml"
            )

    def _identity(self) -> dict[str, Any]:
        """All that makes this run another than its like, for JSON."""
        dumped = self.model_dump(mode="json", exclude=OPERATIONAL)
        return {**dumped, "schedule_rounds": self.schedule_length}

    def taking_up(self, held: RunConfig) -> RunConfig:
        """This config, for a directory that holds a run.

        An extended run keeps its schedules, and one that started from another's state has done so.

        Args:
            held: the config that the run has had so far.
        """
        kept: dict[str, Any] = {}
        if self.schedule_rounds is None and self.rounds != held.schedule_length:
            kept["schedule_rounds"] = held.schedule_length
        if self.start is None:
            kept["start"] = held.start
        return self.model_copy(update=kept)

    def changes_since(self, held: RunConfig) -> dict[str, tuple[Any, Any]]:
        """Keys, with dots, that an earlier config has otherwise: what they were, and are."""
        was, now = (dict(flat(config.model_dump(mode="json"))) for config in (held, self))
        return {key: (was[key], now[key]) for key in now if was[key] != now[key]}

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
        # Some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
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
    except ValueError as error:
        raise ConfigError(f"{source} is not valid TOML: a number is too long") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is not valid TOML: it is nested too deeply") from error
    for override in overrides:
        apply_override(raw, override)
    return raw


def _validated(raw: dict[str, Any], source: str) -> RunConfig:
    try:
        # TOML has no tuples, and JSON's strict mode reads its lists as such.
        written = json.dumps(raw, default=str)
    except ValueError as error:
        raise ConfigError(f"{source}: a number is too long") from error
    try:
        return RunConfig.model_validate_json(written)
    except ValidationError as error:
        lines = mistakes(error, key_names(RunConfig))
        raise ConfigError(*(f"{source}: {line}" for line in lines)) from error


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)
