"""What people write for HOST:PORT: understood, or refused with what to write instead."""

from __future__ import annotations

import pytest

from common.address import Address, check_security
from common.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "dialled", "loopback"),
    [
        ("127.0.0.1:7070", "127.0.0.1:7070", True),
        ("127.8.9.10:1", "127.8.9.10:1", True),
        (" localhost:7070\n", "localhost:7070", True),
        ("LOCALHOST:7070", "localhost:7070", True),
        ("localhost.:7070", "localhost:7070", True),
        ("[::1]:7171", "[::1]:7171", True),
        ("[0:0::1]:65535", "[::1]:65535", True),
        ("FL.Example.org.:7070", "fl.example.org:7070", False),
        ("server_1:7070", "server_1:7070", False),
        ("192.0.2.7:7070", "192.0.2.7:7070", False),
        ("[2001:db8::7]:7070", "[2001:db8::7]:7070", False),
        ("localhost.example.org:7070", "localhost.example.org:7070", False),
        ("127.0.0.1.example.org:7070", "127.0.0.1.example.org:7070", False),
    ],
)
def test_understood(written: str, dialled: str, loopback: bool) -> None:
    address = Address.parse(written)
    assert (str(address), address.is_loopback) == (dialled, loopback)
    assert Address.parse(dialled) == address


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("::1:7171", "write [::1]:7171"),
        ("2001:db8::7:7070", "write [2001:db8::7]:7070"),
        ("::1", "write [::1]:7070"),
        ("[::1]", "write [::1]:PORT"),
        ("[::1]7070", "write [::1]:PORT"),
        ("[::1:7070", "as in [::1]:7070"),
        ("[localhost]:7070", "as in [::1]:7070"),
        ("http://fl.example.org:7070", "as in fl.example.org:7070"),
        ("https://fl.example.org:7070/", "as in fl.example.org:7070"),
        ("grpc://fl.example.org", "such as 127.0.0.1:7070"),
        ("dns:fl.example.org:7070", "HOST:PORT"),
        ("fl.example.org", "such as fl.example.org:7070"),
        ("fl.example.org:", "HOST:PORT"),
        ("fl.example.org:http", "'http' is no port"),
        ("fl.example.org:7070/", "'7070/' is no port"),
        ("fl.example.org:-1", "'-1' is no port"),
        ("fl.example.org:\u0667\u0660", "is no port"),
        ("fl.example.org:65536", "1 to 65535"),
        ("fl.example.org:" + "9" * 5000, "1 to 65535"),
        ("fl.example.org:0", "write the server's port"),
        ("7070", "such as 127.0.0.1:7070"),
        ("", "such as 127.0.0.1:7070"),
        (":7070", "0.0.0.0:7070"),
        ("*:7070", "0.0.0.0:7070"),
        ("0.0.0.0:7070", "the server's own name"),
        ("[::]:7070", "the server's own name"),
        ("ann@fl.example.org:7070", "no host name"),
        ("fl example.org:7070", "no host name"),
        ("-fl.example.org:7070", "no host name"),
        ("300.1.1.1:7070", "no IPv4 address"),
        ("127.1:7070", "no IPv4 address"),
    ],
)
def test_refused_with_what_to_write(written: str, instead: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Address.parse(written)
    assert instead in str(raised.value) and "\n" not in str(raised.value)


def test_what_can_be_listened_on() -> None:
    for written in ("0.0.0.0:0", "[::]:7070", "localhost.:0"):
        Address.parse(written, listening=True)
    with pytest.raises(ConfigError, match=r"\[::1\]:7171"):
        Address.parse("::1:7171", listening=True)


def test_plain_text_off_this_machine_takes_a_word() -> None:
    far, near = Address.parse("192.0.2.7:7070"), Address.parse("LOCALHOST:7070")
    check_security(near, secured=False, insecure=False)
    check_security(far, secured=True, insecure=False)
    check_security(far, secured=False, insecure=True)
    with pytest.raises(ConfigError, match="--insecure"):
        check_security(far, secured=False, insecure=False)
