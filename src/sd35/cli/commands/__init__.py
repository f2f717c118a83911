"""The commands. Each module has the name of its command, and a Typer app `app` with a function of that name."""
