"""Figures of a run for Prometheus, kept whether anybody reads them or not.

Counters count from the start of this process. Gauges of the last round and the last evaluation are
absent until there is one.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram

from common.endpoint import SECONDS, Errors, new_registry
from server.metrics import Metrics
from server.standing import Standing
from server.traffic import Traffic

_OF_A_ROUND: Final = {
    "lambda": ("prism_lambda", "MADA's lambda in the last round."),
    "entropy_bits": ("prism_mask_entropy_bits", "Mean entropy of the mask, bits a parameter."),
    "density": ("prism_mask_density", "Mean probability of a one in the mask."),
    "loss": ("prism_loss", "Mean loss that the clients reported of the last round."),
}


class Telemetry:
    """The metrics of one server process.

    Attributes:
        registry: what Prometheus is answered from.
        errors: counts what calls ended with.
    """

    def __init__(self) -> None:
        self.registry = registry = new_registry()
        self.errors = Errors(
            "prism_errors", "Calls that ended in an error, by gRPC code and class.", registry
        )
        self._round = Gauge("prism_round", "Rounds closed so far.", registry=registry)
        self._planned = Gauge("prism_rounds_planned", "Rounds of the run.", registry=registry)
        self._rounds = Counter(
            "prism_rounds", "Rounds closed by this server process.", registry=registry
        )
        self._round_seconds = Histogram(
            "prism_round_seconds",
            "From opening a round to closing it.",
            buckets=SECONDS,
            registry=registry,
        )
        self._update_seconds = Histogram(
            "prism_update_seconds",
            "From opening a round until an update was in.",
            buckets=SECONDS,
            registry=registry,
        )
        self._updates = Counter("prism_updates", "Updates of closed rounds.", registry=registry)
        self._left_out = Counter(
            "prism_updates_left_out", "Updates that lay far from the others.", registry=registry
        )
        self._clients = Gauge("prism_clients", "Clients by state.", ["state"], registry=registry)
        self._uploads = Gauge(
            "prism_uploads", "Updates on their way in, by state.", ["state"], registry=registry
        )
        self._journal = Gauge("prism_journal_bytes", "Size of the journal.", registry=registry)
        self._messages = Counter(
            "prism_message_bytes",
            "Bytes of protobuf messages, by direction and call.",
            ["direction", "rpc"],
            registry=registry,
        )
        self._payloads = Counter(
            "prism_payload_bytes",
            "Bytes of updates and states, by direction and call.",
            ["direction", "rpc"],
            registry=registry,
        )
        self._quality = Gauge(
            "prism_quality",
            "Figures of the last evaluation, by measure.",
            ["measure"],
            registry=registry,
        )
        self._evaluated = Gauge(
            "prism_evaluated_round", "Rounds that the evaluated model had.", registry=registry
        )
        self._gauges: dict[str, Gauge] = {}

    def started(self, round_: int, planned: int) -> None:
        """The run stands at a round, of how many."""
        self._round.set(round_)
        self._planned.set(planned)

    def traffic(self, traffic: Traffic) -> None:
        """A call is over."""
        labels = traffic.direction, traffic.rpc
        self._messages.labels(*labels).inc(traffic.message_bytes)
        if traffic.rpc in ("SubmitUpdate", "FetchState"):
            self._payloads.labels(*labels).inc(traffic.payload_bytes)

    def closed(self, metrics: Metrics) -> None:
        """A round is closed."""
        self._rounds.inc()
        self._round.set(metrics.round + 1)
        self._round_seconds.observe(metrics.seconds)
        self._updates.inc(len(metrics.updates))
        self._left_out.inc(len(metrics.left_out))
        for row in metrics.updates.values():
            self._update_seconds.observe(row["seconds"])
        line = metrics.line()
        for key, (name, what) in _OF_A_ROUND.items():
            if line[key] is not None:
                self._gauge(name, what).set(line[key])

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """The model was compared with images; a line of evaluation.jsonl."""
        self._evaluated.set(line["round"])
        for measure, value in quality_of(line).items():
            self._quality.labels(measure).set(value)

    def looked(
        self, states: Mapping[str, Standing], uploads: Mapping[str, int], journal: Path
    ) -> None:
        """Once in a while, what no event tells.

        Args:
            states: of each client, by name.
            uploads: how many, by state.
            journal: the folder.
        """
        counts = Tally(states.values())
        for state in Standing:
            self._clients.labels(state).set(counts[state])
        for way, count in uploads.items():
            self._uploads.labels(way).set(count)
        self._journal.set(_size(journal))

    def _gauge(self, name: str, what: str) -> Gauge:
        """One that is absent until there is something to tell."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, what, registry=self.registry)
        return self._gauges[name]


def quality_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The measures of a line of evaluation.jsonl that are one number each."""
    return {
        name: value
        for name, value in line.items()
        if isinstance(value, float) and name != "seconds"
    }


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, as far as they can be looked at."""
    size = 0
    with suppress(OSError):
        for file in folder.iterdir():
            # A log may be gone meanwhile.
            with suppress(FileNotFoundError):
                size += file.stat().st_size
    return size
