"""OpenAI's images API.

Source: OpenAI's API reference and Python client.
"""

from sd35.api.dialects.dialect import Dialect
from sd35.api.dialects.openai.errors import ERROR_FORMAT
from sd35.api.dialects.openai.generations import router

OPENAI = Dialect("openai", ("/v1/images/",), (router,), ERROR_FORMAT)
