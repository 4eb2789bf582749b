"""The fixtures of the commands: scripts of the documentation call them."""

from tests.cli.conftest import birds, run

__all__ = ["birds", "run"]
