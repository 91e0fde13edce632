"""Which keys seal secrets, as the environment says."""

from pathlib import Path

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.platform.errors import UserError
from services.platform.secrets import Vault, parse_keys, read_keys
from services.platform.settings import ENVIRONMENT_PREFIX


class SecretSettings(BaseSettings):
    """Where the keys are that seal secrets; the first is the one that seals, all of them open."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    secret_keys: SecretStr | None = Field(None, description="Keys that seal secrets: ID:KEY,…; the first one seals.")
    secret_keys_file: Path | None = Field(None, description="A file with such keys, one a line, instead.")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "SecretSettings":
        if self.secret_keys is not None and self.secret_keys_file is not None:
            raise ValueError("give METERPOST_SECRET_KEYS or METERPOST_SECRET_KEYS_FILE, not both")
        if self.secret_keys is not None:
            try:
                parse_keys(self.secret_keys.get_secret_value())
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    def vault(self) -> Vault:
        """Return the vault of these keys; without any it seals and opens nothing. Raises UserError."""
        if self.secret_keys is not None:
            return Vault(parse_keys(self.secret_keys.get_secret_value()))
        if self.secret_keys_file is not None:
            return Vault(read_keys(self.secret_keys_file), self.secret_keys_file)
        return Vault({})
