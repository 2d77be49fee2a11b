"""The server that processes are forked from imports this module, and thereby all that they need."""

from __future__ import annotations

from tests.support.preloaded import preload

preload()
