"""Run configs: what is read is what is written, and mistakes are named."""

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from client.methods import TRAINERS
from common.codecs import MASK_CODECS, SCORE_CODECS, WEIGHT_CODECS
from common.config import RunConfig, load_config, parse_config
from common.encoders import ENCODERS
from common.errors import ConfigError
from common.sections import CodecConfig, EncoderConfig
from server.methods import AGGREGATORS

CONFIGS = sorted(Path("configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert load_config(path).name


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text("rounds = 7\n")
    (tmp_path / "marked.toml").write_text("rounds = 7\n", encoding="utf-8-sig")
    assert load_config(tmp_path / "marked.toml") == load_config(tmp_path / "plain.toml")


def test_a_config_that_only_a_program_would_write_ends_in_one_line() -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse_config(f"name = {'[' * 10_000}{']' * 10_000}")


def test_a_data_set_that_is_not_known_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.name: choose digits, .*folder, not 'cats'"):
        parse_config('[data]\nname = "cats"')


def choices(section: type[BaseModel], key: str) -> set[str]:
    """The names that a key takes."""
    return set(get_args(section.model_fields[key].annotation))


def test_every_name_that_a_config_takes_is_in_its_registry() -> None:
    uplink = {codec.name for codec in (*MASK_CODECS, *WEIGHT_CODECS)}
    assert choices(CodecConfig, "up") == uplink
    assert choices(CodecConfig, "scores") == {codec.name for codec in SCORE_CODECS}
    assert choices(EncoderConfig, "name") == set(ENCODERS)
    assert choices(RunConfig, "method") == set(TRAINERS) == set(AGGREGATORS)


@given(
    seed=st.integers(0, 2**63 - 1),
    rounds=st.integers(1, 10**6),
    alpha=st.floats(0, 1),
    layers=st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple),
    data=st.sampled_from(["digits", "cifar10", "folder"]),
)
def test_toml_round_trip(
    seed: int, rounds: int, alpha: float, layers: tuple[int, ...] | None, data: str
) -> None:
    config = RunConfig.model_validate(
        {
            "seed": seed,
            "rounds": rounds,
            "alpha": alpha,
            "encoder": {"layers": layers},
            "data": {"name": data},
        }
    )
    again = parse_config(config.to_toml())
    assert again == config
    assert again.run_id() == config.run_id()


def test_defaults_follow_from_other_keys() -> None:
    config = parse_config('[data]\nname = "cifar10"\nclients = 7')
    assert (config.channels, config.start_clients, config.min_clients) == (3, 7, 4)
    assert parse_config("").channels == 1
    weights = parse_config('method = "fedavg"')
    assert (weights.codec.up, weights.codec.down) == ("float32", "keyframe")
    assert not weights.mada.enabled
    assert weights.train.learning_rate < parse_config("").train.learning_rate
    assert parse_config(weights.to_toml()) == weights


@pytest.mark.parametrize(
    ("given", "start", "least"),
    [
        ("", 5, 3),
        ("min_clients = 2", 2, 2),
        ("start_clients = 2", 2, 2),
        ("start_clients = 4\nmin_clients = 1", 4, 1),
    ],
)
def test_clients_that_rounds_need(given: str, start: int, least: int) -> None:
    config = parse_config(f"[data]\nclients = 5\n[round]\n{given}")
    assert (config.start_clients, config.min_clients) == (start, least)
    assert parse_config(config.to_toml()) == config
    with pytest.raises(ConfigError, match=r"min_clients is more than round\.start_clients"):
        parse_config("", ["round.min_clients=3", "round.start_clients=2"])


def test_the_grace_period_is_no_longer_than_a_deadline() -> None:
    assert parse_config("").grace_seconds == 60
    assert parse_config("", ["round.deadline_seconds=5"]).grace_seconds == 5
    assert parse_config("", ["round.grace_seconds=0"]).grace_seconds == 0


def test_run_id_tells_runs_apart_and_nothing_else() -> None:
    one = parse_config("")
    for other in ("seed=2", "data.clients=4", "output.mask=sample", "output.average=0.5"):
        assert parse_config("", [other]).run_id() != one.run_id()
    changes = ["round.deadline_seconds=5", "round.quorum=0.9", "round.min_clients=1"]
    changes += ["round.lease_seconds=3", "output.sample_every=1", "output.evaluate_every=2"]
    other = parse_config("", changes)
    assert other.run_id() == one.run_id()
    assert one.changes_since(one) == {}
    changed = other.changes_since(one)
    assert {f"{key}={now:g}" for key, (_, now) in changed.items()} >= set(changes)
    assert changed["round.deadline_seconds"] == (600, 5)


def test_another_run_is_told_apart_by_its_keys() -> None:
    held, ours = parse_config(""), parse_config("[train]\nlocal_steps = 7\n[encoder]\npool = 2")
    held.check_same_run(parse_config("# the same"), Path("runs/x"))
    with pytest.raises(ConfigError) as caught:
        ours.check_same_run(held, Path("runs/x"))
    assert "runs/x holds another run (" in str(caught.value)
    assert "train.local_steps = 20 there, 7 here" in str(caught.value)
    assert "encoder.pool = unset there, 2 here" in str(caught.value)
    with pytest.raises(ConfigError, match=r"; and \d+ more keys\)"):
        parse_config('name = "y"\n[data]\nname = "celeba"').check_same_run(held, Path("runs/x"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("roundss = 3", r"roundss: unknown key: did you mean rounds\?"),
        ("local_steps = 3", r"local_steps: unknown key: did you mean train.local_steps\?"),
        ("[trian]\nlocal_steps = 3", r"trian: unknown key: did you mean train\?"),
        ("colour = 3", "colour: unknown key; `prism config` lists all"),
        ('rounds = "many"', "rounds:"),
        ("rounds = 0", "rounds:"),
        ("data = 3", "data:"),
        ('[data]\nname = "imagenet"', "data.name:"),
        (
            "[train]\nlocal_step = 3",
            r"did you mean train.local_steps\?",
        ),
        ("[model]\nimage_size = 31", "model.image_size:"),
        ("alpha = 1.5", "alpha:"),
        ('[codec]\nup = "raw"\ncoordinates_per_round = 0.1', "codec.coordinates_per_round"),
        ('method = "fedavg"\n[codec]\ndown = "exact"', 'needs codec.down = "keyframe"'),
        ('method = "fedavg"\n[codec]\nup = "raw"', '"raw" is not for method = "fedavg"'),
        ('[codec]\nup = "float32"', '"float32" is not for method = "prism"'),
        ('method = "fedpm"\n[mada]\nenabled = true', "mada.enabled"),
        ('method = "fedpm"\nalpha = 0.5', "alpha"),
        (
            'method = "fedpm"\n[codec]\nup = "flips"\ncoordinates_per_round = 0.1',
            "codec.coordinates_per_round",
        ),
        ("rounds = ", "not valid TOML"),
    ],
)
def test_mistakes_are_named_in_one_line(text: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names) as caught:
        parse_config(text)
    assert len(str(caught.value).splitlines()) == 1


def test_each_mistake_has_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config('rounds = "a"\nseed = -1\ncolour = 3')
    assert len(str(caught.value).splitlines()) == 3


def test_overrides() -> None:
    config = parse_config("", ["train.local_steps=7", "codec.up=raw", "encoder.layers=[1, 2]"])
    assert config.train.local_steps == 7
    assert config.encoder.layers == (1, 2)
    for wrong in ("rounds", "=3", "train=3", "seed.deep=1"):
        with pytest.raises(ConfigError):
            parse_config("seed = 1", [wrong])


@pytest.mark.parametrize(
    ("given", "annealing"),
    [
        ((), 1.0),
        (("output.mask=sample",), 0.0),
        (("output.mask=sample", "train.annealing=2"), 2.0),
        (("method=fedpm",), 0.0),
        (("method=fedpm", "output.mask=threshold"), 1.0),
    ],
)
def test_training_anneals_towards_the_mask_that_is_exported(
    given: tuple[str, ...], annealing: float
) -> None:
    config = parse_config("", given)
    assert config.train.annealing == annealing
    assert parse_config(config.to_toml()).run_id() == config.run_id()


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        load_config(tmp_path / "binary.toml")


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000])
def test_a_number_that_python_will_not_write_is_a_mistake(number: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(f"rounds = {number}")
    with pytest.raises(ConfigError):
        parse_config("", [f"rounds={number}"])
