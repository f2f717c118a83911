"""The commands `sd35 storage ...`."""

import json
import sys
from contextlib import closing
from dataclasses import asdict

import typer

from sd35.cli.options import AsJson, with_settings
from sd35.errors import InvalidSetting
from sd35.settings import Settings
from sd35.storage.blobs.open import MEMORY, open_blob_store
from sd35.storage.database import database_url, open_database
from sd35.storage.images import ImageStore
from sd35.storage.verification import VerificationReport, verify_images

app = typer.Typer(no_args_is_help=True)


@app.callback()
def storage() -> None:
    """Check that stored images are complete and undamaged.

    The files are in the image store, and their checksums in the database: use the same --data-dir, --image-store and
    --database as for `sd35 serve`.

    [bold]Examples[/bold]

      sd35 storage verify
      sd35 storage verify --json
    """


@app.command()
@with_settings("image_store", "data_dir", "database")
def verify(*, as_json: AsJson = False, settings: Settings) -> None:
    """Check every stored image, and list those that are damaged or missing.

    Compares each file with the checksum that was recorded when it was written. Files of older versions have no recorded
    checksum: for these, checks the CRCs of the PNG format and the record. Changes nothing, so the service may keep
    running. Exits with 1 if an image is damaged or missing.

    [bold]Examples[/bold]

      sd35 storage verify
      sd35 storage verify --data-dir /data --json | jq -r '.damaged[].file'
      sd35 storage verify --image-store s3://bucket/prefix
    """
    if settings.image_store == MEMORY:
        raise InvalidSetting(
            f"image_store: got {MEMORY!r}; allowed here: a directory or an object store, because images in memory"
            " are lost when the service ends"
        )
    blobs = open_blob_store(settings, check=False)
    with closing(open_database(database_url(settings), tables="require")) as database:
        report = verify_images(ImageStore(blobs, database.ownership))
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        _show(report)
    if not report.is_good:
        sys.exit(1)


def _show(report: VerificationReport) -> None:
    """Print a line for each damaged file and each missing image, then the totals."""
    for damage in report.damaged:
        print(f"damaged  {damage.file}: {damage.reason}")
    for digest in report.missing:
        print(f"missing  {digest}: the database lists this image, but the store has no file for it")
    print(
        f"files checked: {report.files}, damaged: {len(report.damaged)}, missing: {len(report.missing)};"
        f" without recorded checksum: {report.without_checksum}, without owner: {report.without_owner}"
    )
    if report.damaged:
        print("The service replaces a damaged file when the same image is requested again.")
