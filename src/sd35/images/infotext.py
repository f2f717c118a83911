"""How an image was made, as the text that AUTOMATIC1111's web UI puts into its files and other tools read there.

    a cat
    Negative prompt: a dog
    Steps: 28, Sampler: Euler, Schedule type: Automatic, CFG scale: 4.5, Seed: 42, Size: 1024x1024, Model: mini

Source: AUTOMATIC1111/stable-diffusion-webui 1.10: `create_infotext` in modules/processing.py writes it,
`parse_generation_parameters` in modules/infotext_utils.py reads it. The form has no way to quote a prompt: read back,
a prompt's lines have no space around them, and one that begins as the negative prompt's does begins that.
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

KEYWORD = "parameters"  # of the text chunk in PNG files
SAMPLER, SCHEDULE = "Euler", "Automatic"  # what these models are sampled with, in that UI's words
HASH_DIGITS = 10
_NEGATIVE = "Negative prompt:"
_LEAST_SETTINGS = 3  # a last line with fewer is the prompt's
_NAME = re.compile(r"\w[\w /-]+")
_QUOTED = re.compile(r'"(?:[^"\\]++|\\.)*+"')  # possessive: it keeps no way back for each character
_SIZE = re.compile(r"(\d+)x(\d+)", re.ASCII)
_SPECIAL = re.compile(r'[,:\n]|^"')


def infotext(request: Request, maker: Maker | None) -> str:
    """The text of an image; `maker` is None where it is blurred."""
    scale = request.guidance_scale
    settings = {
        "Steps": request.steps,
        "Sampler": SAMPLER,
        "Schedule type": SCHEDULE,
        "CFG scale": int(scale) if scale.is_integer() else scale,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": request.revision[:HASH_DIGITS],
        "Model": request.model,
        **extras(request, maker),
        "Version": f"sd35-fp8-mirror {own_version()}",
    }
    return make(request.prompt, request.negative_prompt, settings)


def extras(request: Request, maker: Maker | None) -> dict[str, object]:
    """What that UI has no setting for, and this project says of an image where it is so."""
    said: dict[str, object] = {}
    if request.skip_layer_scale:
        said["Skip layer scale"] = request.skip_layer_scale
    if maker is None:
        said["Content filtered"] = "blurred"
    else:
        if (maker.drawn_width, maker.drawn_height) != (request.width, request.height):
            said["Drawn size"] = f"{maker.drawn_width}x{maker.drawn_height}"
        if maker.cut_off:
            said["Cut off"] = ", ".join(maker.cut_off)
    return said


def make(prompt: str, negative_prompt: str, settings: Mapping[str, object]) -> str:
    """The text of two prompts and settings, which are quoted as JSON where they would be misread else."""
    negative = f"\n{_NEGATIVE} {negative_prompt}" if negative_prompt else ""
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items())
    return f"{prompt}{negative}\n{line}".strip()


def read(file: bytes) -> tuple[str, dict[str, str], list[str]]:
    """The text of an image's file, "" where it has none, its other texts, and names of those left out for their size.

    Of a file of this project's without one, it is made from its record. Raises NotReplayable where it is no image.
    """
    found = read_texts(file)
    texts = found.texts
    text = texts.pop(KEYWORD, "") or texts.pop(USER_COMMENT, "")
    if not text:
        with suppress(NotReplayable):  # it is not this project's
            record = from_text(texts)
            text = infotext(record.request, record.maker)
    return text, texts, found.names_left_out()


def parse(text: str) -> dict[str, str]:
    """The settings in a text by their names, and `Prompt` and `Negative prompt`.

    A size is two: `Size-1` is the width, `Size-2` the height. That UI adds defaults of its own to what it reads; this
    says what is there.
    """
    *lines, last = text.strip().split("\n")
    settings = list(_settings(last))
    if len(settings) < _LEAST_SETTINGS:
        lines, settings = [*lines, last], []
    prompts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    current = "Prompt"
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            current = "Negative prompt"
        prompts[current].append(line.removeprefix(_NEGATIVE).strip())
    found = {name: "\n".join(part) for name, part in prompts.items()}
    for name, value in settings:
        size = _SIZE.fullmatch(value)
        found |= {f"{name}-1": size[1], f"{name}-2": size[2]} if size else {name: value}
    return found


def _settings(line: str) -> Iterator[tuple[str, str]]:
    """Names and values of `name: value, name: "value"`, in time that grows with the line's length alone."""
    place = 0
    while (colon := line.find(":", place)) >= 0:
        name = line[place:colon].rpartition(",")[2].strip()
        start = colon + 1
        while start < len(line) and line[start].isspace():
            start += 1
        quoted = _QUOTED.match(line, start)
        if quoted and line[quoted.end() : quoted.end() + 1] in {"", ","}:
            value, end = _unquoted(quoted[0]), quoted.end()
        else:
            comma = line.find(",", start)
            end = comma if comma >= 0 else len(line)
            value = line[start:end]
        place = end + 1
        if _NAME.fullmatch(name):
            yield name, value


def _quoted(value: str) -> str:
    needs_quotes = _SPECIAL.search(value) or value != value.strip() or not value
    return json.dumps(value, ensure_ascii=False) if needs_quotes else value


def _unquoted(value: str) -> str:
    try:
        text = str(json.loads(value))
        text.encode()
    except ValueError:  # no JSON, or a lone surrogate, which no answer could hold
        return value
    return text
