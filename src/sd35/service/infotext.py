"""AUTOMATIC1111's text form of how a picture was made, which many tools read from a PNG file's `parameters`.

    a cat on a blue background
    Negative prompt: a dog
    Steps: 28, Sampler: Euler, Schedule type: Automatic, CFG scale: 4.5, Seed: 7, Size: 128x128, ...

Source: its wiki, and what its own "PNG info" reads: `create_infotext` and `parse_generation_parameters`.
"""

import json
import re
from collections.abc import Mapping

from sd35.request import Request
from sd35.service.record import own_version

KEY = "parameters"  # of the PNG file's text
SAMPLER, SCHEDULE = "Euler", "Automatic"  # the one there is: Euler's, over the checkpoint's own flow-matching sigmas
HASH_CHARACTERS = 10
_NEGATIVE = "Negative prompt: "
_PAIR = re.compile(r'\s*([\w\- /]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_LEAST_PAIRS = 3  # fewer are words of a prompt that happen to look like it


def infotext(request: Request, more: Mapping[str, str] | None = None) -> str:
    """The text of a picture's request, with `more` pairs at its end."""
    pairs = {
        "Steps": str(request.steps),
        "Sampler": SAMPLER,
        "Schedule type": SCHEDULE,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": str(request.seed),
        "Size": f"{request.width}x{request.height}",
        "Model hash": request.revision[:HASH_CHARACTERS],
        "Model": request.model,
        **(more or {}),
        "Version": f"sd35 {own_version()}",
    }
    negative = [_NEGATIVE + request.negative_prompt] if request.negative_prompt else []
    settings = ", ".join(f"{name}: {_quoted(value)}" for name, value in pairs.items())
    return "\n".join([request.prompt, *negative, settings])


def read_infotext(text: str) -> dict[str, str]:
    """What a text says: "Prompt", "Negative prompt", and its pairs. Of any other text, the whole is the prompt."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _LEAST_PAIRS:
        lines, pairs = [*lines, last], []
    begin = next((index for index, line in enumerate(lines) if line.startswith(_NEGATIVE.strip())), len(lines))
    negative = "\n".join(lines[begin:]).removeprefix(_NEGATIVE.strip()).strip()
    found = {"Prompt": "\n".join(lines[:begin]).strip(), "Negative prompt": negative}
    return found | {name.strip(): _unquoted(value.strip()) for name, value in pairs}


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
