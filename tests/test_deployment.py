"""What containers and make run is what the command line understands."""

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperCommand, TyperOption
from typer.testing import CliRunner

from common.config import load_config
from common.pem import host_names, load_certificates
from prism.command_line import COMMANDS, build, subcommand


def compose(file: str) -> dict[str, Any]:
    """The services of a compose file, with nothing set but what must be."""
    text = Path(file).read_text()
    # ${NAME:-default}, ${NAME-default} and ${NAME:?what to write}.
    text = re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", text)
    loaded: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+):\?[^}]*\}", r"\1:7070", text))
    return loaded


COMPOSE = compose("docker-compose.yml")
ALONE = compose("docker-compose.client.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EVERY = {**SERVICES, "alone": ALONE["services"]["client"]}
for added, more in compose("docker-compose.monitoring.yml")["services"].items():
    EVERY[added] = {**EVERY.get(added, {}), **more}
DOCKERFILE = Path("Dockerfile").read_text()
IGNORED = Path(".dockerignore").read_text()


def command_of(name: str) -> TyperCommand:
    command = subcommand(name)
    assert isinstance(command, TyperCommand)
    return command


def parse(words: list[str]) -> dict[str, Any]:
    """Parse without running."""
    return dict(command_of(words[0]).make_context(words[0], words[1:]).params)


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Folder by folder of the container what is mounted there, and whether it may be written."""
    found = {}
    for volume in service["volumes"]:
        source, folder, *mode = volume.split(":")
        found[folder] = (source, mode != ["ro"])
    return found


def test_the_server_container() -> None:
    service = SERVICES["server"]
    params = parse(service["command"])
    there = mounts(service)
    assert there["/runs"] == ("runs", True)
    assert params["out"].is_relative_to("/runs")
    assert params["bind"].startswith("0.0.0.0:")
    assert there["/app/configs"] == ("./configs", False)
    assert load_config(Path(params["config"]), params["override"]).data.clients == 3
    # Mutual TLS, and no way around it.
    assert {params[name].parent for name in ("tls_cert", "tls_key", "client_ca")} == {Path("/tls")}
    assert not params["insecure"]
    port = params["bind"].split(":")[1]
    assert service["ports"] == [f"127.0.0.1:7070:{port}"]
    kind, prism, *asked = service["healthcheck"]["test"]
    assert (kind, prism) == ("CMD", "prism")
    asked_for = parse(asked)
    assert asked_for["server"] == f"localhost:{port}"
    assert (asked_for["ca"], asked_for["key"]) == (params["client_ca"], Path("/tls/health.key"))


@pytest.mark.parametrize("service", [SERVICES["client"], ALONE["services"]["client"]])
def test_the_client_containers(service: dict[str, Any]) -> None:
    params = parse(service["command"])
    there = mounts(service)
    assert there[str(params["places"])][1]
    assert there[str(params["data_dir"])] == ("./data", False)
    given = ("name", "state", "ca", "cert", "key")
    assert not any(params[name] for name in given), "each container takes them from its place"
    assert not params["insecure"]


def test_the_clients_of_one_machine() -> None:
    service = SERVICES["client"]
    params = parse(service["command"])
    host, port = params["server"].split(":")
    assert SERVICES[host]["ports"][0].endswith(f":{port}")
    assert params["partition"] == "auto"
    assert int(service["deploy"]["replicas"]) == 3


def test_certificates_are_made_where_they_are_used(tmp_path: Path) -> None:
    service = SERVICES["certificates"]
    words = shlex.split(service["command"])
    assert words[0] == "certs"
    there = mounts(service)
    # The authority's key can be read in one container, which runs for a moment, without a network.
    assert there["/authority"] == ("authority", True)
    assert service["network_mode"] == "none"
    users = {"authority": set(), "server-tls": {"server"}, "places": {"client"}}
    for volume, wanted in users.items():
        named = [
            name
            for name, other in SERVICES.items()
            if volume in {source for source, _ in mounts(other).values()}
        ]
        assert set(named) == wanted | {"certificates"}
    assert not mounts(SERVICES["server"])["/tls"][1]
    # What it makes is what the others look for.
    here = [re.sub("=/", f"={tmp_path}/", word) for word in words]
    assert CliRunner().invoke(build(), here).exit_code == 0
    parsed = parse(SERVICES["server"]["command"])
    health = parse(SERVICES["server"]["healthcheck"]["test"][2:])
    files = [parsed[name] for name in ("tls_cert", "tls_key", "client_ca")]
    files += [health[name] for name in ("ca", "cert", "key")]
    assert all((tmp_path / file.relative_to("/")).exists() for file in files)
    assert len(list((tmp_path / "places").iterdir())) > 3
    (certificate, *_) = load_certificates(tmp_path / "tls" / "server.pem")[1]
    assert {"server", "localhost"} <= set(host_names(certificate))


@pytest.mark.parametrize("name", EVERY)
def test_no_container_may_more_than_it_must(name: str) -> None:
    service = EVERY[name]
    if name in ("prometheus", "grafana"):
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), "one version of it"
    else:
        assert service["image"] == "prism-fl"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"]
    if name != "certificates":
        assert re.fullmatch(r"on-failure:\d+", service["restart"]), "it must not spin"
        assert service["mem_limit"].endswith("g")


@pytest.mark.parametrize("file", [COMPOSE, ALONE])
def test_volumes_belong_to_who_runs_in_the_image(file: dict[str, Any]) -> None:
    """A named volume takes over the owner of the folder that the image has there."""
    owned = re.search(r"chown prism:prism (.*)", DOCKERFILE)
    assert owned
    for service in file["services"].values():
        for folder, (source, _) in mounts(service).items():
            if source in file["volumes"]:
                assert folder in owned[1].split()


def test_the_image() -> None:
    assert DOCKERFILE.startswith("#")
    assert "ARG BASE_IMAGE" in DOCKERFILE
    assert re.search(r"^USER prism$", DOCKERFILE, re.MULTILINE)
    packages = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    wanted = {name.split(".")[0] for name in packages}
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    sent = set(re.findall(r"^!(\w+)$", IGNORED, re.MULTILINE))
    assert copied == sent == wanted | {"configs"}
    assert "benchmarks" not in copied


def test_what_seldom_changes_is_a_layer_below_what_often_does() -> None:
    steps = [step for step in DOCKERFILE.splitlines() if step.startswith(("COPY", "RUN", "ARG"))]
    order = ["ARG TORCH_INDEX", "COPY constraints.txt", "COPY pyproject.toml", "COPY common common"]
    at = [next(i for i, step in enumerate(steps) if step.startswith(word)) for word in order]
    assert at == sorted(at)
    installs = [i for i, line in enumerate(DOCKERFILE.splitlines()) if "install.sh" in line]
    assert len(installs) == 4, "its copy, torch, the dependencies, the project"
    assert "--no-cache-dir" in Path("containers/install.sh").read_text()


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
