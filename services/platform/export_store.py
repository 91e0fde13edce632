"""Where the files of manual exports are kept, for the one that writes them and those that hand them out."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.platform.objects import PATIENCE, ObjectStore, open_store
from services.platform.settings import ENVIRONMENT_PREFIX

EXPORT_STORE_VARIABLE = f"{ENVIRONMENT_PREFIX}EXPORT_STORE_URL"
DEFAULT_FOLDER = "exports"


class ExportStoreSettings(BaseSettings):
    """Names the store."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    export_store_url: str = Field(
        "",
        description="Where exported files are kept: file:///folder, s3://bucket/prefix and the like. Default: the "
        "folder exports in the working folder.",
    )

    def store(self, patience: timedelta = PATIENCE, *, makes_folder: bool = False) -> ObjectStore:
        """Open the store as `open_store` does; the worker alone makes a folder. Blocks.

        Raises UserError where the address cannot be right, Unavailable where a folder is not there.
        """
        url = self.export_store_url or folder_url(Path.cwd() / DEFAULT_FOLDER)
        return open_store(url, patience, makes_folder=makes_folder)


def folder_url(folder: Path) -> str:
    """Return the address of a folder on this machine."""
    return folder.resolve().as_uri()
