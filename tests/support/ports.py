"""Ports at which the processes of a test meet."""

from __future__ import annotations

import itertools
import os
import socket

# Below 32768, where the kernel takes the ports of outgoing connections from: none of those can take a port
# between the moment when it is found free and the moment when a process listens at it.
FIRST, COUNT = 12_000, 20_000
_NUMBERS = itertools.count()


def free_port() -> int:
    """A port that nothing listens at, another one at every call and in every process of the test runner."""
    for number in _NUMBERS:
        port = FIRST + (os.getpid() * 37 + number) % COUNT
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable: the numbers do not end")
