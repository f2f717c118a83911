"""The command `sd35`: the composition of everything below, for a terminal."""

# Importing takes most of a command's first half second, and Ctrl-C may come then as well as later.
try:
    from sd35.cli.ending import exit_when_interrupted

    with exit_when_interrupted():
        from sd35.cli.main import main
except KeyboardInterrupt:  # while `ending` was imported
    raise SystemExit(130) from None

__all__ = ["main"]
