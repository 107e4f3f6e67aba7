"""No test reaches another machine: the guard of all tests refuses, and the test fails."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

CHILD = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
GRANDCHILD = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {CHILD!r}]))"


def send() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("192.0.2.1", 9))


@pytest.mark.parametrize(
    "asks",
    [
        lambda: socket.create_connection(("192.0.2.1", 80), 1),
        lambda: socket.getaddrinfo("example.invalid", 80),
        lambda: urllib.request.urlopen("http://example.invalid/"),
        send,
    ],
)
def test_this_process_may_not(asks: Callable[[], object], network_log: Path) -> None:
    with pytest.raises(OSError, match="no network in tests"):
        asks()
    assert "192.0.2.1" in network_log.read_text() or "example.invalid" in network_log.read_text()
    network_log.unlink()  # with it this test would fail


def test_a_childs_child_may_not(network_log: Path) -> None:
    done = subprocess.run([sys.executable, "-c", GRANDCHILD], capture_output=True, text=True)
    assert done.returncode != 0
    assert "no network in tests" in done.stderr
    assert "192.0.2.1" in network_log.read_text()
    network_log.unlink()


def test_this_machine_may_be_talked_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    socket.getaddrinfo("localhost", 80)
