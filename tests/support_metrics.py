"""What an endpoint of Prometheus metrics answers, read back."""

from __future__ import annotations

import asyncio
import urllib.request

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metrics

UPDATES = {"ann": {"seconds": 2.0, "left_out": False}, "bob": {"seconds": 3.0, "left_out": True}}
METRICS = Metrics(
    round=3,
    lam=0.5,
    density=0.4,
    entropy_bits=0.3,
    bits=None,
    clients=1,
    loss=0.2,
    seconds=7.0,
    updates=UPDATES,
    time="",
)
"""A closed round."""


def samples(text: str) -> dict[str, float]:
    """Every sample of an answer, by its name and the values of its labels."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def values(registry: CollectorRegistry) -> dict[str, float]:
    return samples(generate_latest(registry).decode())


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


async def seen(url: str, name: str, value: float) -> dict[str, float]:
    """Ask until a sample has a value; all that there was then."""
    async with asyncio.timeout(30):
        told: dict[str, float] = {}
        while told.get(name) != value:
            told = samples(await asyncio.to_thread(fetched, url))
    return told
