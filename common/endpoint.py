"""Where Prometheus reads a process's figures: plain HTTP, GET /metrics."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, start_http_server

from common.address import Address
from common.errors import ConfigError, PrismError

SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
"""Bounds of what is measured in seconds, from a step to a round."""

log = logging.getLogger(__name__)


def new_registry() -> CollectorRegistry:
    """A registry of one's own, with this process's memory, CPU time and open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class Errors:
    """Counts errors by gRPC code and class; those that there can be start at 0.

    Args:
        name: of the metric.
        what: they are, in a line.
        registry: that it is in.
    """

    def __init__(self, name: str, what: str, registry: CollectorRegistry) -> None:
        self._counter = Counter(name, what, ["code", "error"], registry=registry)
        for kind in _kinds(PrismError):
            self._counter.labels(kind.status, kind.__name__)
        self._counter.labels("INTERNAL", "other")

    def count(self, error: Exception) -> None:
        """One more; what is no PrismError is a bug, whatever its class."""
        if isinstance(error, PrismError):
            self._counter.labels(error.status, type(error).__name__).inc()
        else:
            self._counter.labels("INTERNAL", "other").inc()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what a block raises."""
        try:
            yield
        except PrismError as error:
            self.count(error)
            raise


@contextmanager
def serving(address: Address | None, registry: CollectorRegistry) -> Iterator[None]:
    """Answer Prometheus during a block; without an address, do nothing.

    Raises:
        ConfigError: the address is not this machine's, or is in use.
    """
    if address is None:
        yield
        return
    if not address.is_loopback:
        log.warning("--metrics %s: whoever reaches it can read the figures", address)
    try:
        server, thread = start_http_server(address.port, address.host, registry)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}: not this machine's, or in use ({error.strerror})"
        ) from error
    listening = Address(address.host, server.server_port)
    log.info("figures for Prometheus at http://%s/metrics", listening)
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _kinds(root: type[PrismError]) -> Iterator[type[PrismError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _kinds(kind)
