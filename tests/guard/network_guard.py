"""Refuses the network to a process, and writes down who asked for it."""

from __future__ import annotations

import os
import sys
from typing import Any

LOG = "SOLO_HARDNEG_NETWORK_LOG"
_HERE = ("", "localhost", "::1", "0.0.0.0", "::")
_LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_CALLS = ("socket.connect", "socket.sendto", "socket.sendmsg")


def refuse(event: str, args: Any) -> None:
    """An audit hook: raises ``OSError`` where another machine is asked for anything."""
    if event in _LOOKUPS:
        host = args[0]
    elif event in _CALLS and isinstance(args[1], tuple):  # otherwise a path on this machine
        host = args[1][0]
    else:
        return
    host = host.decode("latin1") if isinstance(host, bytes) else str(host or "")
    if host in _HERE or host.startswith("127."):
        return
    with open(os.environ.get(LOG, os.devnull), "a") as log:
        log.write(f"{event} {host!r} {sys.argv}\n")
    raise OSError(f"no network in tests: {event} {host!r}")


def install() -> None:
    """Watches this process from now on; there is no way back."""
    sys.addaudithook(refuse)
