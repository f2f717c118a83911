"""Settings of webhooks."""

from pydantic import BaseModel, Field, SecretStr


class WebhookSettings(BaseModel, title="Webhooks", defer_build=True):
    """The signature of webhooks, and their allowed destinations."""

    webhook_secret: SecretStr | None = Field(
        None,
        description="Secret that signs webhooks: `whsec_` followed by 24 to 64 random bytes in base64. Without a"
        " secret, jobs with a webhook are refused.",
    )
    webhook_allow_private: bool = Field(
        default=False,
        description="Allow webhooks to private addresses, including this machine, and over plain HTTP.",
    )
