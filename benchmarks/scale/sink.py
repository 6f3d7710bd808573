"""A bare gRPC server that takes updates and forgets them: what the transport alone costs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from common.rpc.prism.v1 import federation_pb2 as pb
from common.wire import SERVICE


async def swallow(messages: AsyncIterator[bytes], context: Any) -> bytes:  # noqa: ARG001
    """Read a stream to its end; nothing is parsed."""
    async for _ in messages:
        pass
    return pb.SubmitUpdateResponse().SerializeToString()


async def main(address: Path) -> None:
    """Serve on a free loopback port, which is written to a file, until the process is ended."""
    server = grpc.aio.server()
    handler: Any = grpc.stream_unary_rpc_method_handler(swallow)
    handlers = {"SubmitUpdate": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.to_thread(address.write_text, f"127.0.0.1:{port}\n")
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
