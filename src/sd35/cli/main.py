"""The command `sd35`: lists its commands, and imports only the one that runs."""

import ast
import os
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sd35.cli.exit_codes import errors_as_lines, exit_when_interrupted

# Each is a module of `sd35.cli.commands`. The order is that of the help.
COMMANDS = (
    *("serve", "generate", "replay", "doctor"),
    *("plan", "measure", "simulate", "bench"),
    *("models", "pull", "verify", "remove", "synth", "compile"),
    *("keys", "storage", "ui"),
)
EPILOG = "Every setting is also an environment variable (SD35_...) or a key of a TOML file: see docs/settings.md."


class _Commands(TyperGroup):
    """The commands as names only. A command is imported when it is chosen, since all together take seconds."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  Typer passes its own options
        super().__init__(**options)
        self.commands = {name: TyperCommand(name) for name in COMMANDS}

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  Typer's types are not public
        """Write the list of commands, each with the first line of its own help."""
        for name, command in self.commands.items():
            command.help = _first_line(name)
        super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        """Import the command that the first argument names."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)), rest


app = typer.Typer(
    name="sd35",
    cls=_Commands,
    help="Stable Diffusion 3.5 as a service: images from text, over HTTP or right here.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line. An error becomes one line and an exit code: see `sd35.cli.exit_codes`."""
    # Else Transformers warns that image processors are missing, which nothing here uses.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with exit_when_interrupted(), errors_as_lines():
        app(prog_name="sd35")


def load_command(name: str) -> TyperCommand | TyperGroup:
    """Import a command, or a group of commands such as `keys`."""
    group = typer.main.get_group(import_module(f"sd35.cli.commands.{name}").app)
    for each in (group, *group.commands.values()):
        each.epilog = EPILOG
    command = group.commands.get(name, group)
    assert isinstance(command, TyperCommand | TyperGroup)
    return command


def _first_line(name: str) -> str:
    """Return the first line of a command's help from the source of its module, without importing it."""
    source = Path(__file__).with_name("commands") / f"{name}.py"
    functions = (node for node in ast.parse(source.read_bytes()).body if isinstance(node, ast.FunctionDef))
    command = next(function for function in functions if function.name.rstrip("_") == name)
    return (ast.get_docstring(command) or "").partition("\n")[0]


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(version("sd35-fp8-mirror"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version.", callback=_print_version)
    ] = False,
) -> None:
    pass
