"""Settings of webhooks."""

from pydantic import BaseModel, Field, SecretStr


class WebhookSettings(BaseModel, title="Webhooks", defer_build=True):
    """How webhooks are signed, and where they may go."""

    webhook_secret: SecretStr | None = Field(
        None,
        description="Key that signs webhooks: `whsec_` and 24 to 64 random bytes in base64. Without it, jobs with a"
        " webhook are refused.",
    )
    webhook_allow_private: bool = Field(
        default=False, description="Allow webhooks to private addresses, this machine included, and over plain HTTP."
    )
