"""What server and client must agree on. Nothing here touches the network."""

__version__ = "0.1.0"

PROTOCOL_VERSION = 1
