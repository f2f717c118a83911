"""`sd35 storage`: the stored images of the settings."""

import json
import sys
from dataclasses import asdict

from sd35.errors import InvalidSetting
from sd35.settings import Settings
from sd35.storage.blobs.open import MEMORY, open_blob_store
from sd35.storage.database import database_url, open_database
from sd35.storage.images import ImageStore
from sd35.storage.verification import VerificationReport, verify_images


def verify(settings: Settings, *, as_json: bool) -> None:
    """Check every stored image; exit with 1 where one is damaged or missing.

    Raises InvalidSetting, StoreUnavailable.
    """
    if settings.image_store == MEMORY:
        raise InvalidSetting(f"image_store: got {MEMORY!r}; allowed here: one that outlives the service")
    blobs = open_blob_store(settings, check=False)
    database = open_database(database_url(settings), upgrade=False)
    try:
        report = verify_images(ImageStore(blobs, database.ownership))
    finally:
        database.close()
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        _print(report)
    if not report.is_good:
        sys.exit(1)


def _print(report: VerificationReport) -> None:
    for damage in report.damaged:
        print(f"damaged  {damage.file}: {damage.reason}")
    for digest in report.missing:
        print(f"missing  {digest}: somebody owns this image, and the store has no file of it")
    print(
        f"{report.files} files checked: {len(report.damaged)} damaged, {len(report.missing)} missing;"
        f" {report.without_checksum} have no recorded checksum, {report.without_owner} have no owner"
    )
    if report.damaged:
        print("The service replaces a damaged file as soon as the same image is requested again.")
