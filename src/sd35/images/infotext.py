"""Infotext: the generation parameters as text, in the format that AUTOMATIC1111's web UI writes into its files.

    a cat
    Negative prompt: a dog
    Steps: 28, Sampler: Euler, Schedule type: Automatic, CFG scale: 4.5, Seed: 42, Size: 1024x1024, Model: mini

Source: AUTOMATIC1111/stable-diffusion-webui 1.10: `create_infotext` in modules/processing.py writes it,
`parse_generation_parameters` in modules/infotext_utils.py reads it. The format cannot quote prompts. Therefore, parsing
strips the lines of a prompt, and treats a line that starts with "Negative prompt:" as the start of the negative prompt.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

from sd35.errors import NotReplayable
from sd35.images.exif import USER_COMMENT
from sd35.images.record import Maker, from_text, own_version
from sd35.images.texts import read_texts
from sd35.request import Request

KEYWORD = "parameters"  # the keyword of the text chunk in PNG files
SAMPLER, SCHEDULE = "Euler", "Automatic"  # the web UI's names for the sampler of these models
HASH_CHARS = 10
_NEGATIVE = "Negative prompt:"
_MIN_SETTINGS = 3  # a last line with fewer settings belongs to the prompt
_NAME = re.compile(r"\w[\w /-]+")
_QUOTED = re.compile(r'"(?:[^"\\]++|\\.)*+"')  # possessive quantifiers, so that matching takes linear time
_SIZE = re.compile(r"(\d+)x(\d+)", re.ASCII)
_NEEDS_QUOTES = re.compile(r'[,:\n]|^"')


def infotext(request: Request, maker: Maker | None) -> str:
    """Return the infotext of an image. `maker` holds the versions that generated it; None for a blurred image."""
    scale = request.guidance_scale
    settings = {
        "Steps": request.steps,
        "Sampler": SAMPLER,
        "Schedule type": SCHEDULE,
        "CFG scale": int(scale) if scale.is_integer() else scale,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": request.revision[:HASH_CHARS],
        "Model": request.model,
        **extras(request, maker),
        "Version": f"sd35-fp8-mirror {own_version()}",
    }
    return format_infotext(request.prompt, request.negative_prompt, settings)


def extras(request: Request, maker: Maker | None) -> dict[str, object]:
    """Return the settings, by name, that AUTOMATIC1111 does not have. Only those that apply are included."""
    settings: dict[str, object] = {}
    if request.skip_layer_scale:
        settings["Skip layer scale"] = request.skip_layer_scale
    if maker is None:
        settings["Content filtered"] = "blurred"
    else:
        if (maker.drawn_width, maker.drawn_height) != (request.width, request.height):
            settings["Drawn size"] = f"{maker.drawn_width}x{maker.drawn_height}"
        if maker.cut_off:
            settings["Cut off"] = ", ".join(maker.cut_off)
    return settings


def format_infotext(prompt: str, negative_prompt: str, settings: Mapping[str, object]) -> str:
    """Return an infotext. Values that its parser would otherwise misread are quoted as JSON."""
    negative = f"\n{_NEGATIVE} {negative_prompt}" if negative_prompt else ""
    line = ", ".join(f"{name}: {_quote_if_needed(str(value))}" for name, value in settings.items())
    return f"{prompt}{negative}\n{line}".strip()


def read_infotext(file: bytes) -> tuple[str, dict[str, str], list[str]]:
    """Return the infotext of a file, its other texts, and the names of texts that were too long to read.

    If a file of this project has no infotext, the infotext is created from its record: the request and the versions
    that generated the image. Other files without an infotext give "". Raises NotReplayable if the file is not an image,
    or is damaged.
    """
    image_texts = read_texts(file)
    texts = image_texts.texts
    text = texts.pop(KEYWORD, "") or texts.pop(USER_COMMENT, "")
    if not text:
        with suppress(NotReplayable):  # not a file of this project
            record = from_text(texts)
            text = infotext(record.request, record.maker)
    return text, texts, image_texts.names_left_out()


def parse_infotext(text: str) -> dict[str, str]:
    """Parse an infotext into its settings by name, including `Prompt` and `Negative prompt`.

    A size becomes two settings: `Size-1` is the width, and `Size-2` the height. Unlike the web UI, this parser adds no
    defaults.
    """
    *lines, last = text.strip().split("\n")
    settings = list(_parse_settings(last))
    if len(settings) < _MIN_SETTINGS:
        lines, settings = [*lines, last], []
    prompts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    current = "Prompt"
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            current = "Negative prompt"
        prompts[current].append(line.removeprefix(_NEGATIVE).strip())
    parsed = {name: "\n".join(prompt_lines) for name, prompt_lines in prompts.items()}
    for name, value in settings:
        size = _SIZE.fullmatch(value)
        parsed |= {f"{name}-1": size[1], f"{name}-2": size[2]} if size else {name: value}
    return parsed


def _parse_settings(line: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values in a line such as `name: value, name: "value"`. Takes linear time."""
    position = 0
    while (colon := line.find(":", position)) >= 0:
        name = line[position:colon].rpartition(",")[2].strip()
        start = colon + 1
        while start < len(line) and line[start].isspace():
            start += 1
        quoted = _QUOTED.match(line, start)
        # Quotation marks count only around a whole value.
        if quoted and line[quoted.end() : quoted.end() + 1] in {"", ","}:
            value, end = _unquote(quoted[0]), quoted.end()
        else:
            comma = line.find(",", start)
            end = comma if comma >= 0 else len(line)
            value = line[start:end]
        position = end + 1
        if _NAME.fullmatch(name):
            yield name, value


def _quote_if_needed(value: str) -> str:
    """Quote a value as JSON if the parser would otherwise split it, strip it, or not find it."""
    needs_quotes = _NEEDS_QUOTES.search(value) or value != value.strip() or not value
    return json.dumps(value, ensure_ascii=False) if needs_quotes else value


def _unquote(value: str) -> str:
    """Return the string in a JSON literal. A value that is not valid JSON stays as it is."""
    try:
        text = str(json.loads(value))
        text.encode()
    except ValueError:  # not JSON, or a lone surrogate, which cannot be encoded in a response
        return value
    return text
