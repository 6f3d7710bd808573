"""The dashboard shows what is there: its metrics exist, and each of its panels has data."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support import background
from support_metrics import METRICS, fetched
from test_end_to_end import TINY, free_port

import client.telemetry
from server.telemetry import Telemetry

FOLDER = Path("containers/monitoring")


def queries() -> list[str]:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def exported() -> set[str]:
    server, other = Telemetry(), client.telemetry.Telemetry()
    server.closed(METRICS)
    server.evaluated({"round": 1, "FD (small)": 1.0})
    other.acknowledged(0.5)
    names = set()
    for registry in (server.registry, other.registry):
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            # One with labels may have no sample yet.
            names.add(family.name + "_total" * (family.type == "counter"))
            names |= {sample.name for sample in family.samples}
    return names


def test_every_metric_of_the_dashboard_is_exported() -> None:
    used = {name for query in queries() for name in re.findall(r"\b(?:prism|process)_\w+", query)}
    assert len(used) > 20
    assert used - exported() == set()


def test_compose_mounts_what_is_here() -> None:
    services = yaml.safe_load(Path("docker-compose.monitoring.yml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        mounted = [volume.split(":")[0] for volume in services[name]["volumes"]]
        files = [Path(path) for path in mounted if path.startswith("./")]
        assert files and all(file.is_file() for file in files)
    ports = {services[name]["environment"]["PRISM_METRICS"] for name in ("server", "client")}
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert ports == {"0.0.0.0:9464"}
    assert jobs[0]["static_configs"] == [{"targets": ["server:9464"]}]
    assert jobs[1]["dns_sd_configs"][0]["port"] == 9464


@pytest.fixture
def prometheus() -> str:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("there is no prometheus here; on Debian: apt-get install prometheus")
    return binary


@pytest.mark.slow
def test_every_panel_has_data(tmp_path: Path, prometheus: str) -> None:
    """A real run, scraped by a real Prometheus; each query of the dashboard is asked of it."""
    config, out = tmp_path / "tiny.toml", tmp_path / "run"
    config.write_text(TINY.replace("rounds = 3", "rounds = 100000"))
    words = ("-m", "prism", "run", config, "--out", out, "--features", "small")
    words += ("--set", "output.evaluate_every=2", "--set", "train.local_steps=20")
    environment = {**os.environ, "PRISM_METRICS": "127.0.0.1:0"}
    here = f"127.0.0.1:{free_port()}"
    with background(tmp_path / "run.log", *words, env=environment) as run:
        logs = [out / "logs" / f"{name}.log" for name in ("server", "client-0", "client-1")]
        until(lambda: all(map(told_where, logs)), run)
        server, *others = map(told_where, logs)
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(scrape_config(server, others)))
        command = [prometheus, f"--config.file={tmp_path / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={here}"]
        with (tmp_path / "prometheus.log").open("wb") as stream:
            asked = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:
            assert len(queries()) > 20
            for query in queries():
                until(lambda query=query: has_data(here, query), run)
            targets = json.loads(fetched(f"http://{here}/api/v1/targets"))["data"]["activeTargets"]
            assert [target["health"] for target in targets] == ["up"] * 3
        finally:
            asked.terminate()
            asked.wait(60)
            run.send_signal(signal.SIGINT)
            run.wait(60)


def told_where(log: Path) -> str:
    """HOST:PORT of a process's figures, once its log says so; empty before."""
    said = log.read_text() if log.exists() else ""
    found = re.search(r"figures for Prometheus at http://(\S+)/metrics", said)
    return found[1] if found else ""


def scrape_config(server: str, others: list[str]) -> dict[str, Any]:
    """Ours, with the addresses of processes that are here in place of containers."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    places = {"server": [server], "client": others}
    for job in config["scrape_configs"]:
        assert job.pop("static_configs", None) or job.pop("dns_sd_configs")
        job["static_configs"] = [{"targets": places.pop(job["job_name"])}]
    assert not places
    return config


def has_data(prometheus: str, query: str) -> bool:
    """Whether a query has a result that is a number."""
    asked = urllib.parse.urlencode({"query": query.replace("$__rate_interval", "20s")})
    try:
        answer = json.loads(fetched(f"http://{prometheus}/api/v1/query?{asked}"))
    except urllib.error.HTTPError as error:
        assert error.code == 503, f"{query}: {error.read().decode()}"
        return False
    except urllib.error.URLError:
        return False
    return any(math.isfinite(float(row["value"][1])) for row in answer["data"]["result"])


def until(ready: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    """Ask again and again, as long as the run goes on, for two minutes."""
    deadline = time.monotonic() + 120
    while not ready():
        assert run.poll() is None, "the run has ended"
        assert time.monotonic() < deadline, "it has taken too long"
        # The run and Prometheus need the processors meanwhile.
        time.sleep(0.2)
