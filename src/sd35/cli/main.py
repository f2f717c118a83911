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

# Each command is a module of `sd35.cli.commands`. The help lists them under these titles, in this order.
PANELS = {
    "Serve and generate": ("serve", "ui", "generate", "replay"),
    "Models": ("models", "pull", "verify", "remove", "compile", "synth"),
    "Plan and measure": ("plan", "measure", "simulate", "bench"),
    "Operate": ("doctor", "keys", "storage"),
}
COMMANDS = tuple(name for names in PANELS.values() for name in names)
EPILOG = (
    "Each setting is also an environment variable (SD35_PORT for --port) and a key of a TOML file (--config)."
    " `sd35 serve --help` lists them all."
)
_HELP_OPTIONS = ["-h", "--help"]
_EXAMPLES = "[bold]Examples[/bold]"


class _Commands(TyperGroup):
    """The commands by name. Importing all of them takes seconds, so a command is only imported when it is chosen."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  Typer passes its own options
        super().__init__(**options)
        self.commands = {
            name: TyperCommand(name, rich_help_panel=panel) for panel, names in PANELS.items() for name in names
        }

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  Typer's types are not public
        """Write the list of commands. Each has the first line of its help and one example, read from its source."""
        for name, command in self.commands.items():
            command.help = _summary(name)
        _hide_types_of_flags(self)
        super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        """Return the name of the command that the first argument names, the imported command, and its arguments."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)), rest


app = typer.Typer(
    name="sd35",
    cls=_Commands,
    help="Generate images with Stable Diffusion 3.5, over HTTP or directly in the terminal."
    "\n\n`sd35 COMMAND --help` describes a command and its options.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": _HELP_OPTIONS},
)


def main() -> None:
    """Run the command line. An error becomes a message and an exit code: see `sd35.cli.exit_codes`."""
    # Without this, Transformers warns about missing image processors, which sd35 does not use.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with exit_when_interrupted(), errors_as_lines():
        app(prog_name="sd35")


def load_command(name: str) -> TyperCommand | TyperGroup:
    """Import a command, or a group of commands such as `keys`."""
    group = typer.main.get_group(import_module(f"sd35.cli.commands.{name}").app)
    for member in (group, *group.commands.values()):
        member.epilog = EPILOG
        member.help = _join_lines(member.help or "")
        _hide_types_of_flags(member)
    command = group.commands.get(name, group)  # a module with a single command is a group with this command
    assert isinstance(command, TyperCommand | TyperGroup)
    return command


def _hide_types_of_flags(command: Any) -> None:  # noqa: ANN401  Typer's types are not public
    """Leave out `<bool>` after flags that take no value, such as `--json` and `--help`."""
    for option in command.get_params(typer.Context(command, help_option_names=_HELP_OPTIONS)):
        if getattr(option, "is_flag", False):
            option.metavar = ""


def _summary(name: str) -> str:
    """Return two lines for the list of commands: the first line of a command's help, and its first example."""
    first_line, _, rest = _docstring(name).partition("\n")
    example = rest.partition(_EXAMPLES)[2].strip().partition("\n")[0]
    return f"{first_line}\n  [dim]$ {example.strip()}[/dim]"


def _docstring(name: str) -> str:
    """Return a command's help from the source of its module, without importing it."""
    source = Path(__file__).with_name("commands") / f"{name}.py"
    functions = (node for node in ast.parse(source.read_bytes()).body if isinstance(node, ast.FunctionDef))
    command = next(function for function in functions if function.name.rstrip("_") == name)  # such as `compile_`
    return ast.get_docstring(command) or ""


def _join_lines(text: str) -> str:
    """Join the lines of each paragraph, because Rich wraps them to the width of the terminal. Indented lines stay."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else paragraph.replace("\n", " ") for paragraph in paragraphs
    )


def _print_version(is_requested: bool) -> None:
    """Print the version and exit, if requested."""
    if is_requested:
        print(version("sd35-fp8-mirror"))
        raise typer.Exit


@app.callback()
def _define_options(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and exit.", callback=_print_version)
    ] = False,
) -> None:
    """Define the options of `sd35` itself. Typer reads them from the signature."""
