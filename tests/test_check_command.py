"""`prism check`: each broken setup is named in one line, and nothing is started or claimed."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support_tls import Authority

from common.config import parse_config
from common.errors import ConfigError
from common.pem import check_period
from prism import estimate
from prism.commands.check import check

SMALL = """
[model]
width = 1
image_size = 16
[data]
clients = 2
"""
Said = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of forty images."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(40):
            file = tmp_path / "photos" / name / f"{index}.png"
            Image.new("L", (16, 16), index).save(file)
    return tmp_path / "photos"


def problems(said: Said, config: Path, *changes: str, **options: Any) -> list[str]:
    """The lines of what is wrong; there are some."""
    options.setdefault("out", config.parent / "out")
    before = sorted(config.parent.rglob("*"))
    with pytest.raises(SystemExit, match="nothing was started"):
        check(config, list(changes), **options)
    assert sorted(config.parent.rglob("*")) == before
    lines = said.readouterr().out.splitlines()
    return [line.removeprefix("PROBLEM  ") for line in lines if line.startswith("PROBLEM")]


def test_a_good_config_and_what_it_costs(config: Path, capsys: Said) -> None:
    check(config, [], out=config.parent / "out", bind="127.0.0.1:0")
    said = capsys.readouterr().out
    assert "PROBLEM" not in said and not (config.parent / "out").exists()
    for what in (
        "config",
        "directory",
        "address",
        "bytes (estimate)",
        "data digits: 1,498",
        "split: 2 clients, 749 images each",
        "memory (estimate)",
        "time (estimate)",
    ):
        assert f"ok       {what}" in said, what


def test_a_typo_in_a_key(config: Path, capsys: Said) -> None:
    (line,) = problems(capsys, config, "train.local_step=3")
    assert line.endswith("train.local_step: unknown key: did you mean train.local_steps?")


def test_an_impossible_split(config: Path, capsys: Said) -> None:
    (line,) = problems(capsys, config, "data.clients=2000")
    assert line.startswith("1498 images cannot be split among 2000 clients")
    (line,) = problems(capsys, config, "data.clients=1000")
    assert line.startswith("949 of 1000 clients could not train; client 0: no class has 20 images")
    (line,) = problems(capsys, config, "privacy.mechanism=moments", "privacy.delta=0.01")
    assert line.startswith("2 of 2 clients could not train; client 0: privacy.delta = 0.01 is no")


def test_missing_data(config: Path, capsys: Said) -> None:
    (line,) = problems(capsys, config, "data.name=mnist", data_dir=config.parent / "none")
    assert "none (--data-dir); not found" in line
    (line,) = problems(capsys, config, "data.name=folder")
    assert "--data folder:PATH" in line


def test_every_unreadable_file(config: Path, photos: Path, capsys: Said) -> None:
    for name in ("cat/3.png", "dog/7.png", "dog/9.png"):
        (photos / name).write_bytes(b"no image")
    lines = problems(capsys, config, data=f"folder:{photos}")
    assert len(lines) == 3
    assert all("cannot read image" in line for line in lines)
    assert str(photos / "dog/9.png") in lines[2]


def test_a_port_in_use(config: Path, capsys: Said) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (line,) = problems(capsys, config, bind=address)
    assert line.startswith(f"cannot listen on {address}")
    (line,) = problems(capsys, config, bind="0.0.0.0:0")
    assert "--insecure" in line


def test_a_directory_that_cannot_be_written(config: Path, capsys: Said) -> None:
    # Root may write wherever the file system takes anything.
    (line,) = problems(capsys, config, out=Path("/proc/runs/x"))
    assert line.startswith("cannot write to /proc/runs/x: /proc: ")


def test_a_directory_of_another_run(config: Path, tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.toml").write_text(parse_config(SMALL).to_toml())
    check(config, [], out=tmp_path / "out", elsewhere=True)
    assert "goes on there" in capsys.readouterr().out
    (line,) = problems(capsys, config, "seed=7")
    assert "(seed = 1 there, 7 here)" in line


def test_too_little_memory(config: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "free_memory", lambda: 1_000_000_000)
    (line,) = problems(capsys, config, "model.width=512")
    assert line.startswith("memory: 2 clients and a server with ")
    monkeypatch.setattr(estimate, "free_memory", lambda: 300_000_000)
    (line,) = problems(capsys, config)
    assert line.startswith("memory (estimate): ") and line.endswith(" of 300 MB")


def test_a_certificate_of_another_time(config: Path, tmp_path: Path, capsys: Said) -> None:
    cert, _ = Authority(tmp_path).issue("server")
    _, other = Authority(tmp_path).issue("other")
    (line,) = problems(capsys, config, elsewhere=True, tls_cert=cert, tls_key=other)
    assert line == f"{other} is not the key of {cert}"
    assert "good until" in check_period(cert, time.time())
    for clock, says in ((0.0, "is not valid before"), (4e9, "has expired")):
        with pytest.raises(ConfigError, match=says):
            check_period(cert, clock)


def test_bytes_are_those_of_the_codecs() -> None:
    def total(text: str) -> estimate.Traffic:
        return estimate.Traffic.of(parse_config(SMALL + text))

    raw = total('[codec]\nup = "raw"\ndown = "keyframe"')
    d = 8 * raw.up
    assert raw.down == 2 * d
    assert raw.total == pytest.approx(2 * (40 * d / 8 + 39 * 2 * d))
    weights = estimate.Traffic.of(parse_config('method = "fedavg"' + SMALL))
    assert weights.up == weights.down == 4 * d
    assert total("").up < 0.2 * raw.up
