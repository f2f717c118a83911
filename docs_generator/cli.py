"""Generate docs/reference/cli.md from Typer's objects of the commands."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup

from docs_generator.markdown import code, document, sentence, table
from sd35.cli.main import PANELS, load_command
from sd35.settings import Settings
from sd35.settings.description import group_of

_INTRODUCTION = """
`sd35 --help` lists the commands, and `sd35 COMMAND --help` shows the options of a command. `-h` is short for `--help`.
`sd35 --version` prints the version.

Most commands have flags for some [settings](settings.md). Such a command also takes `--config FILE`, a TOML file of
settings. The file and the environment variables can set all settings. The [glossary](glossary.md) explains the terms.

Exit codes: 0 for success, 1 for a failure, 2 for wrong arguments or input, 130 after Ctrl-C. Once they are
ready, `serve` and `ui` exit with 0 after Ctrl-C or SIGTERM. An error is a message on stderr: see [Errors](errors.md).
"""
# The reasons why tests do not run an example, by pattern. The first pattern that matches the example counts.
_NOT_RUN = {
    r"\| jq": "needs jq",
    r"sd35 serve .*sd3\.5": "needs a model from the Hugging Face hub",
    r"sd35 (serve|ui)\b": "runs until Ctrl-C",
    r"sd35 (pull|verify|remove) ": "needs a model from the Hugging Face hub",
    r"sd35 bench compare": "needs two results of `sd35 bench`",
    r"sd35 (bench|compile)\b": "takes minutes",
    r"~/models|--registry": "needs files of your own",
    r"sd35 synth |/models/": "writes many gigabytes",
    r"--step-times h100\.json": "needs a measurement of a GPU",
    r"postgresql:": "needs PostgreSQL",
    r"(s3|gs|az):": "needs an object store",
    r"sd35 keys revoke": "needs the id of a key",
    r"sd35 keys open": "needs a service that has lost its database",
    r"--backend (?!onnx|diffusers)": "needs another backend",
}
_EXAMPLES = re.compile(r"\[bold\]Examples?\[/bold\]")
_DEFAULT = re.compile(r" \\?\[default: (.+?)\]")  # in help texts, Rich needs a backslash before a bracket
_SHARED = {"help", "config"}  # options that the introduction describes

Command: TypeAlias = TyperCommand | TyperGroup


class Entry(NamedTuple):
    """A command, its full name such as "sd35 keys add", and the level of its heading."""

    name: str
    command: Command
    level: int


def page() -> str:
    """Return the page in Markdown."""
    sections = []
    for title, names in PANELS.items():
        sections += [f"## {title}", *map(_section, _entries(names))]
    return document("Command line", "src/sd35/cli", _INTRODUCTION, *sections)


def _entries(names: Iterable[str]) -> Iterator[Entry]:
    """Yield an entry for each command. A group such as `keys` is followed by an entry for each of its commands."""
    for name in names:
        command = load_command(name)
        yield Entry(f"sd35 {name}", command, 3)
        for member in command.commands.values() if isinstance(command, TyperGroup) else ():
            assert isinstance(member, TyperCommand | TyperGroup)
            yield Entry(f"sd35 {name} {member.name}", member, 4)


def _section(entry: Entry) -> str:
    """Return the section of a command: usage, description, arguments, options, settings and examples."""
    text, examples = _split_help(entry.command.help or "")
    context = typer.Context(entry.command)
    arguments = [param for param in entry.command.params if param.param_type_name == "argument"]
    options = [param for param in entry.command.params if param.param_type_name == "option"]
    own = [param for param in options if not _is_setting(param) and param.name not in _SHARED]
    parts = [
        f"{'#' * entry.level} {entry.name}",
        code(_usage(entry, arguments)),
        text,
        _arguments_table(arguments),
        _options_table(own, context),
        _settings_sentence([param for param in options if _is_setting(param)]),
        *_example_blocks(examples),
    ]
    return "\n\n".join(part for part in parts if part)


def _split_help(text: str) -> tuple[str, str]:
    """Return the prose and the examples of a help text, without the backslashes that Rich needs before brackets."""
    prose, *examples = _EXAMPLES.split(text.replace("\\[", "["), maxsplit=1)
    return prose.strip(), "".join(examples)


def _usage(entry: Entry, arguments: list[Any]) -> str:
    """Return a line such as "sd35 pull [OPTIONS] NAME"."""
    names = " ".join(map(_metavar, arguments))
    # The group `bench` has options, because it also runs without a command. Other groups need a command.
    needs_command = isinstance(entry.command, TyperGroup) and not entry.command.params
    return f"{entry.name} [OPTIONS] {'COMMAND ...' if needs_command else names}".strip()


def _metavar(argument: Any) -> str:  # noqa: ANN401  Typer's types are not public
    return str(argument.metavar or argument.name.upper())


def _is_setting(param: Any) -> bool:  # noqa: ANN401
    """Return whether an option is the flag of a setting. An option of another group may have the name of a setting."""
    return param.name in Settings.model_fields and param.rich_help_panel == group_of(param.name)


def _arguments_table(arguments: list[Any]) -> str:
    rows = ([code(_metavar(param)), param.help or ""] for param in arguments)
    return table(["Argument", "Meaning"], rows) if arguments else ""


def _options_table(options: list[Any], context: typer.Context) -> str:
    rows = ([_names(param, context), *_default_and_meaning(param)] for param in options)
    return table(["Option", "Default", "Meaning"], rows) if options else ""


def _names(param: Any, context: typer.Context) -> str:  # noqa: ANN401
    """Return an option's names and the placeholder of its value, such as "`--output FILE`, `-o`"."""
    if param.is_flag:
        return ", ".join(map(code, [*param.opts, *param.secondary_opts]))
    # Typer writes "<int range>" for a number with limits, and "<list[int]>" for an option that may be repeated.
    placeholder = str(param.display_type_rich(ctx=context)).replace(" range", "").replace("list[", "").replace("]", "")
    names = sorted(param.opts, key=len, reverse=True)
    return ", ".join(map(code, [f"{names[0]} {placeholder}", *names[1:]]))


def _default(param: Any) -> str:  # noqa: ANN401
    """Return an option's default as code, "required", "on" or "off", or nothing if it has no default."""
    if param.required:
        return "required"
    if param.is_flag and param.secondary_opts:
        return "on" if param.default else "off"
    is_unset = param.default is None or param.default is False
    return "" if is_unset else code(str(param.default))


def _default_and_meaning(param: Any) -> tuple[str, str]:  # noqa: ANN401
    """Return an option's default, and its meaning with the limits of its value.

    An option without a default value describes its default in words, in `show_default` or in its help.
    """
    in_help = _DEFAULT.search(param.help or "")
    in_words = in_help[1] if in_help else ""
    if isinstance(param.show_default, str):
        in_words = param.show_default
    text = sentence(_DEFAULT.sub("", param.help or ""))
    low, high = param.min, param.max
    if low is not None and high is not None:
        text += f" From {low} to {high}."
    elif low is not None:
        text += f" At least {low}."
    if param.multiple and "repeated" not in text:
        text += " May be repeated."
    return _default(param) or in_words, text


def _settings_sentence(params: list[Any]) -> str:
    """Return the flags of a command's settings in one sentence. For `sd35 serve`, which has all, do not list them."""
    if not params:
        return ""
    if len(params) > len(Settings.model_fields) / 2:
        return "Options: all [settings](settings.md) except the secrets."
    return f"[Settings](settings.md): {', '.join(code(param.opts[0]) for param in params)}."


def _example_blocks(examples: str) -> Iterator[str]:
    """Yield the examples as console blocks. A block has consecutive examples with the same reason for not being run."""
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    for reason, group in groupby(lines, key=_why_not_run):
        mark = f"<!-- not run: {reason} -->\n" if reason else ""
        block = "\n".join(f"$ {line}" for line in group)
        yield f"{mark}```console\n{block}\n```"


def _why_not_run(example: str) -> str:
    """Return the reason why tests do not run an example, or nothing if they run it."""
    return next((reason for pattern, reason in _NOT_RUN.items() if re.search(pattern, example)), "")
