"""Settings of what is stored: images, jobs, keys, caches."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr, field_validator

from sd35.settings.flag import Flag


def _xdg_directory(variable: str, fallback: str) -> Path:
    """Return this project's folder in an XDG base directory, which `variable` or the default under `~` names."""
    return Path(os.environ.get(variable) or Path("~") / fallback) / "sd35"


class StorageSettings(BaseModel, title="Storage", defer_build=True):
    """Where images, jobs and caches are stored, and for how long."""

    cache_dir: Annotated[Path, Flag("DIRECTORY", default="~/.cache/sd35")] = Field(
        default_factory=lambda: _xdg_directory("XDG_CACHE_HOME", ".cache"),
        validate_default=True,
        description="Directory for files that can be downloaded or built again.",
    )
    data_dir: Annotated[Path, Flag("DIRECTORY", default="~/.local/share/sd35")] = Field(
        default_factory=lambda: _xdg_directory("XDG_DATA_HOME", ".local/share"),
        validate_default=True,
        description="Directory for files that cannot be recreated.",
    )
    database: Annotated[str | None, Flag("FILE|URL", default="sd35.db in data_dir")] = Field(
        None,
        repr=False,
        description="Database of jobs and API keys: a SQLite file, `postgresql://USER:PASSWORD@HOST/NAME` (needs the"
        " extra `postgres`), or `memory`, which ends with the process. A password in the flag is visible to other users"
        " of the machine; in the variable it is not.",
    )
    image_store: Annotated[str | None, Flag("DIRECTORY|URL", default="images in data_dir")] = Field(
        None,
        description="Where images are stored: a directory, `s3://BUCKET/PREFIX`, `gs://...`, `az://CONTAINER/PREFIX`,"
        " or `memory`, which ends with the process. Credentials, region and endpoint of an object store come from the"
        " environment: `AWS_...`, `GOOGLE_...`, `AZURE_...`.",
    )
    redirect_images: bool = Field(
        default=False,
        description="Redirect downloads of stored PNG files to signed URLs of the object store, if it supports them.",
    )
    link_secret: Annotated[SecretStr | None, Flag(default="generated once, stored in data_dir")] = Field(
        None,
        min_length=16,
        description="Secret of at least 16 characters that signs links to images. All processes of a service need the"
        " same.",
    )
    retention_days: Annotated[float, Flag("DAYS")] = Field(
        30, ge=0, description="Days to keep an image after it was last requested; 0 is unlimited."
    )
    retention_gb: Annotated[float, Flag("GB")] = Field(
        20, ge=0, description="Gigabytes of images to keep. Beyond that, the oldest are removed; 0 is unlimited."
    )
    keep_metadata: bool = Field(
        default=True,
        description="Record in each image file how it was generated, unless the request says otherwise.",
    )

    @field_validator("cache_dir", "data_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError as error:  # a user without a home directory, as in some containers
            raise ValueError(
                f"{value}: there is no home directory; name one with SD35_CACHE_DIR, SD35_DATA_DIR"
            ) from error
