"""Whether a server is well, by the standard gRPC health service."""

from __future__ import annotations

from contextlib import closing
from typing import Any, cast

from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.channel import Channel
from client.messages import Security
from common.address import Address
from common.errors import TransportError
from common.wire import SERVICE


def check_health(address: Address, security: Security, seconds: float) -> None:
    """Ask once.

    Args:
        address: of the server.
        security: how the channel is secured.
        seconds: how long it may take.

    Raises:
        ConfigError: the certificates cannot be used, or something else is at the address.
        TransportError: the server cannot be reached, or says that it does not serve.
    """
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    with closing(Channel(address, security)) as channel, channel.errors():
        # The stubs have the class without its one method.
        stub = cast(Any, health_pb2_grpc.HealthStub(channel.grpc))
        reply = stub.Check(request, timeout=seconds)
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        raise TransportError(f"{address} answers, and says that it is {status}")
