"""Workloads: mixes of request classes, built in or read from a file.

The same seed of a workload gives the same requests. Every request has its own image seed, so that no image comes from a
server's cache, except for the share `repeated_images`. `seed_offset` changes all image seeds, for a second run against
the same server.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field, ValidationError

from sd35.bench.frozen import Frozen
from sd35.bench.scenes import all_scenes
from sd35.errors import InvalidSetting
from sd35.parsing import read_json, read_toml, shown
from sd35.request import GUIDANCE_SCALE, PROMPT_CHARACTERS, STEPS

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_SEEDS = 2**32 - 1  # number of image seeds: they begin at 1, because 0 means a random seed in Stability's dialect
_MAX_ERRORS = 4  # at most four fields in an error message, because a file of another kind has many wrong fields
ALL_CLASSES = "all"  # the name for all classes together in a report


class BenchRequest(NamedTuple):
    """One request. The server chooses the values that are None."""

    class_name: str
    prompt: str
    seed: int
    negative_prompt: str = ""
    size_px: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None

    @property
    def row_steps(self) -> int | None:
        """The work of the request: its steps, twice with guidance. None if the server chooses steps or guidance."""
        if self.steps is None or self.guidance is None:
            return None
        return self.steps * (2 if self.guidance > 1 else 1)


def _check_name(text: str) -> str:
    """Return the name of a class, or raise ValueError for the reserved name "all".

    Internal: `_describe_error` adds the field and the value to the error.
    """
    if text == ALL_CLASSES:
        raise ValueError("allowed: any other name, because reports use this name for all classes together")
    return text


def _check_size(text: str) -> str:
    """Return a size such as "1024x768", or raise ValueError for text of another form.

    Internal: `_describe_error` adds the field and the value to the error.
    """
    if not _SIZE.fullmatch(text):
        raise ValueError("allowed: WIDTHxHEIGHT in pixels, such as 1024x1024")
    return text


Size = Annotated[str, AfterValidator(_check_size)]
Steps = Annotated[int, Field(ge=STEPS[0], le=STEPS[1])]
Guidance = Annotated[float, Field(ge=GUIDANCE_SCALE[0], le=GUIDANCE_SCALE[1])]
Prompt = Annotated[str, Field(min_length=1, max_length=PROMPT_CHARACTERS)]


class RequestClass(Frozen):
    """A class of requests. Each request takes one size, number of steps and guidance at random from the lists.

    If a list is empty, the server chooses the value. `weight` is the relative frequency of the class.
    """

    name: Annotated[str, Field(min_length=1, max_length=40), AfterValidator(_check_name)]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1
    sizes: tuple[Size, ...] = ()
    steps: tuple[Steps, ...] = ()
    guidance: tuple[Guidance, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    negative_prompt: Annotated[str, Field(max_length=PROMPT_CHARACTERS)] = ""


class Workload(Frozen):
    """A mix of request classes. The default prompts are scenes that the embedded model knows.

    `repeated_prompts` and `repeated_images` are shares of requests from 0 to 1: those with the prompt of an earlier
    request, and those that are equal to an earlier request.
    """

    name: str = Field(min_length=1, max_length=80)
    seed: Annotated[int, Field(ge=0)] = 1
    repeated_prompts: Annotated[float, Field(ge=0, le=1)] = 0
    repeated_images: Annotated[float, Field(ge=0, le=1)] = 0
    prompts: tuple[Prompt, ...] = ()
    classes: tuple[RequestClass, ...] = Field(min_length=1)

    @cached_property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of everything but the name."""
        content = self.model_dump(mode="json", exclude={"name"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def requests(self, part: str, seed_offset: int = 0) -> Iterator[BenchRequest]:
        """Yield requests without end.

        `part` names a part of a run, such as "warm-up". The same part always gives the same requests, and different
        parts give different ones. `seed_offset` is added to every image seed.
        """
        rng = random.Random(f"{self.seed}/{part}")  # noqa: S311  the mix is not a secret
        prompts: dict[str, Iterator[str]] = {}
        history: dict[str, list[BenchRequest]] = {}  # the earlier requests of each class
        for request_class in self.classes:
            choice = request_class.prompts or self.prompts or _SCENE_PROMPTS
            prompts[request_class.name] = _shuffle_forever(choice, rng)
            history[request_class.name] = []
        weights = [request_class.weight for request_class in self.classes]
        while True:
            (request_class,) = rng.choices(self.classes, weights)
            previous = history[request_class.name]
            if previous and rng.random() < self.repeated_images:
                yield rng.choice(previous)
                continue
            is_repeat = previous and rng.random() < self.repeated_prompts
            prompt = rng.choice(previous).prompt if is_repeat else next(prompts[request_class.name])
            previous.append(_draw_request(request_class, prompt, rng, seed_offset))
            yield previous[-1]


def mixed_workload() -> Workload:
    """Return the default workload: three numbers of steps, with and without guidance, in two sizes."""
    sizes, guidance = ("128x128", "96x96"), (0.0, 4.5)
    classes = (
        RequestClass(name=f"{steps} steps", sizes=sizes, steps=(steps,), guidance=guidance) for steps in (4, 12, 28)
    )
    return Workload(name="mixed", repeated_prompts=0.5, classes=tuple(classes))


def plain_workload() -> Workload:
    """Return the default workload of dialects that have no field for steps. It sets only the prompt and the seed."""
    return Workload(name="plain", repeated_prompts=0.5, classes=(RequestClass(name="any"),))


def read_workload(path: Path) -> Workload:
    """Read a workload from a TOML or JSON file.

    Raises InvalidSetting if the file is not valid. The error names the field, its value and what is allowed.
    """
    try:
        content: Any = read_toml(path) if path.suffix == ".toml" else read_json(path)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidSetting(f"--workload: {path} cannot be read ({reason}); check the path") from error
    except ValueError as error:
        form = "TOML" if path.suffix == ".toml" else "JSON"
        raise InvalidSetting(
            f"--workload: {path} is not valid {form} ({error}). Use TOML in a file named *.toml, or JSON in any other"
        ) from error
    try:
        workload = Workload.model_validate(content)
    except ValidationError as error:
        raise InvalidSetting(f"--workload: {path}: {describe_errors(error)}") from error
    names = [request_class.name for request_class in workload.classes]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidSetting(f"--workload: {path}: two classes are named {duplicates[0]!r}; allowed: unique names")
    return workload


def describe_errors(error: ValidationError) -> str:
    """Describe the wrong fields of a file, at most four: "classes.0.steps.1: got 0; allowed: ...; and 3 more"."""
    details = error.errors()
    locations = [detail["loc"] for detail in details]
    # For a list with an invalid item, pydantic reports in addition that the list is too short. Only the item is shown.
    wrong = [detail for detail in details if not any(_is_within(location, detail["loc"]) for location in locations)]
    descriptions = [_describe_error(dict(detail), error.title) for detail in wrong[:_MAX_ERRORS]]
    if len(wrong) > _MAX_ERRORS:
        descriptions.append(f"and {len(wrong) - _MAX_ERRORS} more")
    return "; ".join(descriptions)


def _is_within(location: tuple[Any, ...], parent: tuple[Any, ...]) -> bool:
    return len(location) > len(parent) and location[: len(parent)] == parent


def _describe_error(detail: dict[str, Any], model_name: str) -> str:
    """Describe one error of pydantic. `model_name` is the class of the whole file, such as "Workload"."""
    location = detail["loc"] or ("the whole file",)
    where = ".".join(map(str, location))
    if detail["type"] == "extra_forbidden":
        if model_name != Workload.__name__:
            return f"{where}: this version of sd35 does not know the key"
        known = (RequestClass if "classes" in location[:-1] else Workload).model_fields
        return f"{where}: got an unknown key; allowed: {', '.join(known)}"
    if detail["type"] == "missing":
        return f"{where}: is missing, but required"
    if detail["type"] == "too_short":
        return f"{where}: got {detail['input']!r}; allowed: a list of one or more items"
    if detail["type"] == "model_type":
        return f"{where}: got {shown(detail['input'])}; allowed: a table of keys and values"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "allowed:")
    return f"{where}: got {shown(detail['input'])}; {message[0].lower()}{message[1:]}"


def _draw_request(request_class: RequestClass, prompt: str, rng: random.Random, seed_offset: int) -> BenchRequest:
    """Draw a request of a class with a prompt. Everything else is random."""
    # The same seed of a workload must give the same requests, so the order of the random choices matters.
    size = _SIZE.fullmatch(rng.choice(request_class.sizes)) if request_class.sizes else None
    return BenchRequest(
        class_name=request_class.name,
        prompt=prompt,
        seed=1 + (rng.randrange(_SEEDS) + seed_offset) % _SEEDS,
        negative_prompt=request_class.negative_prompt,
        size_px=(int(size[1]), int(size[2])) if size else None,
        steps=rng.choice(request_class.steps) if request_class.steps else None,
        guidance=rng.choice(request_class.guidance) if request_class.guidance else None,
    )


def _shuffle_forever(prompts: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """Yield all prompts in random order, then all of them in another order, without end."""
    while True:
        yield from rng.sample(prompts, len(prompts))


_SCENE_PROMPTS = tuple(scene.prompt for scene in all_scenes())
