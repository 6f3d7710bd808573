"""`prism config` and docs/configuration.md say what the models of a config say."""

from pathlib import Path

import pytest

from common.config import RunConfig
from common.config_text import key_names
from prism.commands.config import config, page
from prism.config_keys import Key, sections

KEYS = {key.name: key for section in sections() for key in section.keys}


def test_the_page_is_what_the_command_prints() -> None:
    text = Path("docs/configuration.md").read_text()
    assert text == page(sections()), "run `make docs`"


def test_every_key_is_listed_and_says_what_it_is() -> None:
    names = key_names(RunConfig)
    grouped = {name.partition(".")[0] for name in names if "." in name}
    assert list(KEYS) == [name for name in names if name not in grouped]
    assert [name for name, key in KEYS.items() if len(key.help) < 15] == []
    assert [name for name, key in KEYS.items() if "|" in key.help + key.type + key.default] == []


@pytest.mark.parametrize(
    ("name", "type_", "default"),
    [
        ("train.local_steps", "integer, at least 1", "20"),
        ("seed", "integer, at least 0, below 2^63", "1"),
        ("model.channels", "one of 1, 3", "-"),
        ("encoder.pool", "integer, at least 1", "-"),
        ("encoder.layers", "list of integers", "-"),
        ("privacy.delta", "number, at least 1e-15, below 1", "1e-05"),
        ("codec.down", None, '"error-feedback"; "keyframe" for fedpm; "keyframe" for fedavg'),
        ("mada.enabled", "boolean", "false"),
        ("data.name", 'one of "digits", "mnist", "fmnist", "cifar10", "celeba", "folder"', None),
    ],
)
def test_types_bounds_and_defaults(name: str, type_: str | None, default: str | None) -> None:
    key = KEYS[name]
    assert key == Key(name, type_ or key.type, default or key.default, key.help)


def test_keys_can_be_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    config("learning_rate")
    said = capsys.readouterr().out
    assert "train.learning_rate = 0.3; 0.1 for fedpm" in said
    assert "rounds" not in said.replace("first round", "").replace("last round", "")
    with pytest.raises(SystemExit, match="no key has 'lerning' in its name"):
        config("lerning")
