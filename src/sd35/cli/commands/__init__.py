"""The commands: the module of a command has its name, and holds a function of that name in the Typer app `app`."""
