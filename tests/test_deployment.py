"""What containers and make run is what the command line understands."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperCommand, TyperOption

from common.config import load_config
from prism.__main__ import COMMANDS, subcommand

COMPOSE: dict[str, Any] = yaml.safe_load(Path("docker-compose.yml").read_text())
DOCKERFILE = Path("Dockerfile").read_text()


def interpolate(text: str) -> str:
    """Compose's ${NAME:-default}, with nothing set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def command_of(name: str) -> TyperCommand:
    command = subcommand(name)
    assert isinstance(command, TyperCommand)
    return command


def parse(words: list[str]) -> dict[str, Any]:
    """Parse without running."""
    arguments = [interpolate(word) for word in words[1:]]
    return dict(command_of(words[0]).make_context(words[0], arguments).params)


def test_the_server_container() -> None:
    service = COMPOSE["services"]["server"]
    params = parse(service["command"])
    volume, mount = service["volumes"][0].split(":")
    assert volume in COMPOSE["volumes"]
    assert Path(params["out"]).is_relative_to(mount)
    # A named volume takes over the owner of the folder that the image has there.
    assert f"chown prism:prism {mount}" in DOCKERFILE
    assert "COPY configs configs" in DOCKERFILE
    assert params["bind"].startswith("0.0.0.0:")
    assert load_config(Path(params["config"]), params["override"]).data.clients == 3


def test_the_client_containers() -> None:
    service = COMPOSE["services"]["client"]
    params = parse(service["command"])
    host, port = params["server"].split(":")
    assert host in COMPOSE["services"]
    assert port == parse(COMPOSE["services"]["server"]["command"])["bind"].split(":")[1]
    assert params["partition"] == "auto"
    assert params["name"] is None, "every container needs a name of its own"
    mounts = [interpolate(volume).split(":")[1] for volume in service["volumes"]]
    assert str(params["data_dir"]) in mounts
    assert str(params["state"]) in DOCKERFILE
    replicas = int(interpolate(str(service["deploy"]["replicas"])))
    assert replicas == 3


def test_the_image() -> None:
    assert DOCKERFILE.startswith("#")
    assert "ARG BASE_IMAGE" in DOCKERFILE
    assert re.search(r"^USER prism$", DOCKERFILE, re.MULTILINE)
    packages = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    wanted = {name.split(".")[0] for name in packages}
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    sent = set(re.findall(r"^!(\w+)$", Path(".dockerignore").read_text(), re.MULTILINE))
    assert copied == sent == wanted | {"configs"}


def test_every_package_is_listed() -> None:
    listed = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    roots = ("prism", "client", "common", "server")
    found = {
        ".".join(path.parent.parts) for root in roots for path in Path(root).rglob("__init__.py")
    }
    assert set(listed) == found


def test_make_names_real_commands() -> None:
    for line in Path("Makefile").read_text().splitlines():
        if "$(BIN)/prism " in line:
            words = line.split("$(BIN)/prism ")[1].split(" > ")[0].split()
            params = parse([word.replace("$(DATA_DIR)", "data") for word in words])
            assert "config" not in params or os.access(params["config"], os.R_OK)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str) -> None:
    command = subcommand(name)
    with command.make_context(name, [], resilient_parsing=True) as context:
        assert f"prism {name} " in command.get_help(context)
    assert not [p.name for p in command.params if isinstance(p, TyperOption) and not p.help]
    for part in getattr(command, "commands", {}).values():
        assert f"prism {name} {part.name} " in (part.help or "")
        assert not [p.name for p in part.params if isinstance(p, TyperOption) and not p.help]
