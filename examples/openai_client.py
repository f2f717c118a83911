"""Use the server with the official `openai` package, unmodified: only the base URL differs.

    pip install openai
    python openai_client.py                         # the server at http://127.0.0.1:8000
    python openai_client.py http://gpu.example:8000

Writes cat.png and dog.png to the current directory.
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"

# The package requires a key. The server ignores it, unless it has API keys.
client = OpenAI(base_url=f"{URL}/v1", api_key="not-needed")


def save(name: str, b64_json: str | None) -> None:
    """Write an image that the API returned in base64."""
    Path(name).write_bytes(base64.b64decode(b64_json or ""))
    print(name)


# `gpt-image-1` is an alias of the server's first model, and `auto` means the model's default size. Fields that OpenAI's
# API does not have go into `extra_body`.
response = client.images.generate(
    model="gpt-image-1",
    prompt="a cat on a blue background",
    size="auto",
    extra_body={"seed": 7, "negative_prompt": "a dog", "guidance_scale": 4.5},
)
for image in response.data or []:
    save("cat.png", image.b64_json)

# With `stream`, previews arrive before the image.
for event in client.images.generate(
    model="gpt-image-1", prompt="a dog on a red background", size="auto", stream=True, partial_images=2
):
    if event.type == "image_generation.completed":
        save("dog.png", event.b64_json)
    else:
        print(f"preview {event.partial_image_index}")
