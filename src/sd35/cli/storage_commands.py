"""The commands about stored images: `sd35 storage verify`."""

import typer

from sd35.cli import options

_storage = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", epilog=options.EPILOG)
app = typer.Typer()
app.add_typer(_storage, name="storage")


@_storage.callback()
def _about() -> None:
    """Stored images: check that they are whole.

    The files are in the image store of the settings, their checksums in the database.

    [bold]Examples[/bold]

      sd35 storage verify
      sd35 storage verify --json
    """


@_storage.command(epilog=options.EPILOG)
def verify(
    *,
    as_json: options.AsJson = False,
    image_store: options.ImageStore = None,
    data_dir: options.DataDir = None,
    database: options.Database = None,
    config: options.Config = None,
) -> None:
    """Check every stored image, and list those that are damaged or missing.

    Reads each file and compares it with the checksum that was recorded when it was written. A file that was stored
    before checksums existed is checked by the CRCs in the PNG file and by its record. Nothing is changed, and the
    service may run meanwhile. Give the same settings as to `sd35 serve`.

    Exits with 1 where an image is damaged or missing.

    [bold]Examples[/bold]

      sd35 storage verify
      sd35 storage verify --data-dir /data --json | jq -r '.damaged[].file'
      sd35 storage verify --image-store s3://bucket/prefix
    """
    settings = options.settings_of(locals())
    from sd35.cli.storage import verify as run

    run(settings, as_json=as_json)
