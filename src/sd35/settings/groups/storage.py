"""Settings of storage: images, jobs, API keys and caches."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr, field_validator

from sd35.settings.flag import Flag


def _xdg_directory(variable: str, fallback: str) -> Path:
    """Return `sd35` in an XDG base directory: the one that `variable` names, or `fallback` in the home directory."""
    return Path(os.environ.get(variable) or Path("~") / fallback) / "sd35"


class StorageSettings(BaseModel, title="Storage", defer_build=True):
    """Where images, jobs, API keys and caches are stored, and how long images are kept."""

    cache_dir: Annotated[Path, Flag("DIRECTORY", default="~/.cache/sd35")] = Field(
        default_factory=lambda: _xdg_directory("XDG_CACHE_HOME", ".cache"),
        validate_default=True,
        description="Directory of files that can be downloaded or built again.",
    )
    data_dir: Annotated[Path, Flag("DIRECTORY", default="~/.local/share/sd35")] = Field(
        default_factory=lambda: _xdg_directory("XDG_DATA_HOME", ".local/share"),
        validate_default=True,
        description="Directory of files that cannot be recreated: images, and the database of jobs and API keys.",
    )
    database: Annotated[str | None, Flag("FILE|URL", default="sd35.db in data_dir")] = Field(
        None,
        repr=False,
        description="Database of jobs and API keys: an SQLite file, `postgresql://USER:PASSWORD@HOST/NAME` (needs the"
        " extra `postgres`), or `memory`, which is lost when the process ends. Other users of the machine can see a"
        " password in the flag, but not in the variable.",
    )
    image_store: Annotated[str | None, Flag("DIRECTORY|URL", default="images in data_dir")] = Field(
        None,
        description="Where images are stored: a directory, `s3://BUCKET/PREFIX`, `gs://...`, `az://CONTAINER/PREFIX`,"
        " or `memory`, which is lost when the process ends. Credentials, region and endpoint of an object store come"
        " from environment variables (`AWS_...`, `GOOGLE_...`, `AZURE_...`).",
    )
    redirect_images: bool = Field(
        default=False,
        description="Redirect downloads of PNG files to signed URLs of the object store, if it supports them.",
    )
    link_secret: Annotated[SecretStr | None, Flag(default="generated once and stored in data_dir")] = Field(
        None,
        min_length=16,
        description="Secret that signs links to images: at least 16 characters, the same for all processes of a"
        " service.",
    )
    retention_days: Annotated[float, Flag("DAYS")] = Field(
        30, ge=0, description="Days to keep images after their last request, and jobs after their end; 0 is unlimited."
    )
    retention_gb: Annotated[float, Flag("GB")] = Field(
        20,
        ge=0,
        description="Gigabytes of images to keep. Beyond this size, the images that were not requested for the longest"
        " time are deleted. 0 is unlimited.",
    )
    keep_metadata: bool = Field(
        default=True,
        description="Record in each image file how it was generated. A request can turn this off for its"
        " own image. To turn it off for all: `SD35_KEEP_METADATA=false`, or `keep_metadata = false` in the file.",
    )

    @field_validator("cache_dir", "data_dir")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        """Replace `~` by the user's home directory. Raises ValueError if there is none."""
        try:
            return value.expanduser()
        except RuntimeError as error:  # the user has no home directory, as in some containers
            raise ValueError(
                "this user has no home directory. Set both directories with SD35_CACHE_DIR and SD35_DATA_DIR"
            ) from error
