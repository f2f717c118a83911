"""The command `sd35`: the composition of everything below, for a terminal."""

from sd35.cli.main import main

__all__ = ["main"]
