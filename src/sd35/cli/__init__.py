"""The command line of `sd35`."""

# Imports take most of a command's first half second, and Ctrl-C may arrive during them too.
try:
    from sd35.cli.exit_codes import exit_when_interrupted

    with exit_when_interrupted():
        from sd35.cli.main import main
except KeyboardInterrupt:  # while `exit_codes` was imported
    raise SystemExit(130) from None

__all__ = ["main"]
