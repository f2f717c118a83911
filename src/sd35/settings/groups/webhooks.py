"""Settings of webhooks."""

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class WebhookSettings(BaseModel):
    """How webhooks are signed, and where they may go."""

    model_config = ConfigDict(title="Webhooks", defer_build=True)

    webhook_secret: SecretStr | None = Field(
        None,
        description="Key that signs webhooks: `whsec_` and 24 to 64 random bytes in base64. Without it, jobs with a"
        " webhook are refused.",
    )
    webhook_allow_private: bool = Field(
        default=False, description="Allow webhooks to private addresses, this machine included, and over plain HTTP."
    )
