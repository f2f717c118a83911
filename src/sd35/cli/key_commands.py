"""The commands about API keys: `sd35 keys add`, `list`, `revoke`, `open`."""

from typing import Annotated

import typer

from sd35.cli import options

_keys = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", epilog=options.EPILOG)
app = typer.Typer()
app.add_typer(_keys, name="keys")


@_keys.callback()
def _about() -> None:
    """API keys: who may use the service, and how much.

    They lie in the database of the settings, beside the jobs.

    [bold]Examples[/bold]

      sd35 keys add "the shop"
      sd35 keys list
    """


@_keys.command(epilog=options.EPILOG)
def add(
    name: Annotated[str, typer.Argument(help="Whose it is; for people, and for the list.")],
    *,
    admin: Annotated[bool, typer.Option("--admin", help="Sees everybody's jobs, and the admin routes.")] = False,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Requests in a minute; 0: without bound. Default: the service's.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=0, help="Images at the same time; 0: without bound. Default: the service's.")
    ] = None,
    pixels_per_hour: Annotated[
        int | None, typer.Option(min=0, help="Pixels in an hour; 0: without bound. Default: the service's.")
    ] = None,
    data_dir: options.DataDir = None,
    database: options.Database = None,
    config: options.Config = None,
) -> None:
    """Make a key, and print its secret: this once, for only a hash of it is kept.

    The secret goes to stdout, all else to stderr.

    [bold]Examples[/bold]

      sd35 keys add "the shop"
      sd35 keys add ops --admin
      SD35_DATABASE=postgresql://sd35@db/sd35 sd35 keys add trial --requests-per-minute 10 --concurrency 1
    """
    settings = options.settings_of(locals())
    from sd35.access.keys import Quota
    from sd35.cli.keys import add as run

    run(settings, name, Quota(requests_per_minute, concurrency, pixels_per_hour), is_admin=admin)


@_keys.command("list", epilog=options.EPILOG)
def list_(
    *,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
    database: options.Database = None,
    config: options.Config = None,
) -> None:
    """List the keys, the oldest first, revoked ones too.

    Their secrets are not known, and not shown.

    [bold]Examples[/bold]

      sd35 keys list
      sd35 keys list --json | jq -r '.[].id'
    """
    settings = options.settings_of(locals())
    from sd35.cli.keys import list_ as run

    run(settings, as_json=as_json)


@_keys.command(epilog=options.EPILOG)
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `sd35 keys list` shows it.")],
    *,
    data_dir: options.DataDir = None,
    database: options.Database = None,
    config: options.Config = None,
) -> None:
    """End a key: whoever has its secret is refused from now on.

    Its jobs and images stay as they are, and so does its line in the list.

    [bold]Examples[/bold]

      sd35 keys revoke 3f9c2a71b04d88e1
    """
    settings = options.settings_of(locals())
    from sd35.cli.keys import revoke as run

    run(settings, key_id)


@_keys.command("open", epilog=options.EPILOG)
def open_(
    *,
    data_dir: options.DataDir = None,
    database: options.Database = None,
    config: options.Config = None,
) -> None:
    """Let the service start without keys, after its database was lost: whoever reaches it may then use it.

    A service that once had keys does not start without them. This removes the file in data_dir that says so. Where
    there are keys, revoked ones too, they stay required.

    [bold]Examples[/bold]

      sd35 keys open
    """
    settings = options.settings_of(locals())
    from sd35.cli.keys import open_ as run

    run(settings)
