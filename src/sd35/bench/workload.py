"""What is asked for: a mix of classes of requests, from a file or built in, drawn by chance from a seed.

No two requests have one seed, so that no image is given from a store, unless `repeated_images` says otherwise. Nor
have those of two runs against one server: `salt`.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sd35.bench.scenes import scenes
from sd35.errors import InvalidSetting
from sd35.parsing import read_json, read_toml
from sd35.request import GUIDANCE_SCALE, PROMPT_CHARACTERS, STEPS

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_SEEDS = 2**32 - 1  # from 1 on, for 0 is a random one in Stability's dialect
_SHOWN = 80  # characters of a wrong value
_MOST_TOLD = 4  # wrong fields: of a file that is another altogether, more say nothing
ALL = "all"  # what a report calls all classes together


class BenchRequest(NamedTuple):
    """One request; what is None is left to the server."""

    kind: str
    prompt: str
    seed: int
    negative_prompt: str = ""
    size_px: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None

    @property
    def row_steps(self) -> int | None:
        """Rows of the transformer in all its steps: two in each where there is guidance. None where it is unknown."""
        if self.steps is None or self.guidance is None:
            return None
        return self.steps * (2 if self.guidance > 1 else 1)


def _check_name(text: str) -> str:
    if text == ALL:
        raise ValueError("allowed: any other name, for so a report calls all classes together")
    return text


def _check_size(text: str) -> str:
    if not _SIZE.fullmatch(text):
        raise ValueError("allowed: WIDTHxHEIGHT in pixels, such as 1024x1024")
    return text


Size = Annotated[str, AfterValidator(_check_size)]
Steps = Annotated[int, Field(ge=STEPS[0], le=STEPS[1])]
Guidance = Annotated[float, Field(ge=GUIDANCE_SCALE[0], le=GUIDANCE_SCALE[1])]
Prompt = Annotated[str, Field(min_length=1, max_length=PROMPT_CHARACTERS)]
_STRICT = ConfigDict(frozen=True, extra="forbid")


class Kind(BaseModel):
    """A class of requests. Of several sizes, steps or guidances, each request takes one by chance."""

    model_config = _STRICT

    name: Annotated[str, Field(min_length=1, max_length=40), AfterValidator(_check_name)]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1
    sizes: tuple[Size, ...] = ()
    steps: tuple[Steps, ...] = ()
    guidance: tuple[Guidance, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    negative_prompt: Annotated[str, Field(max_length=PROMPT_CHARACTERS)] = ""


class Workload(BaseModel):
    """A mix. Without `prompts`, they are those that the embedded model knows."""

    model_config = _STRICT

    name: str = Field(min_length=1, max_length=80)
    seed: Annotated[int, Field(ge=0)] = 1
    repeated_prompts: Annotated[float, Field(ge=0, le=1)] = 0
    repeated_images: Annotated[float, Field(ge=0, le=1)] = 0
    prompts: tuple[Prompt, ...] = ()
    classes: tuple[Kind, ...] = Field(min_length=1)

    @cached_property
    def digest(self) -> str:
        """What tells workloads apart: 12 digits of the SHA-256 of all it says, its name aside."""
        content = self.model_dump(mode="json", exclude={"name"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def requests(self, part: str, salt: int = 0) -> Iterator[BenchRequest]:
        """Requests without end; each `part` of a run draws its own, the same every time but for `salt` in the seeds."""
        rng = random.Random(f"{self.seed}/{part}")  # noqa: S311  a mix, no secret
        prompts = {kind.name: _shuffled(kind.prompts or self.prompts or _KNOWN, rng) for kind in self.classes}
        weights = [kind.weight for kind in self.classes]
        came: dict[str, list[BenchRequest]] = {kind.name: [] for kind in self.classes}
        while True:
            (kind,) = rng.choices(self.classes, weights)
            before = came[kind.name]
            if before and rng.random() < self.repeated_images:
                yield rng.choice(before)
                continue
            is_repeat = before and rng.random() < self.repeated_prompts
            prompt = rng.choice(before).prompt if is_repeat else next(prompts[kind.name])
            before.append(_drawn(kind, prompt, rng, salt))
            yield before[-1]


def mixed() -> Workload:
    """The default: short and long images, with and without guidance, in two sizes that the embedded model draws."""
    sizes, guidance = ("128x128", "96x96"), (0.0, 4.5)
    kinds = (Kind(name=f"{steps} steps", sizes=sizes, steps=(steps,), guidance=guidance) for steps in (4, 12, 28))
    return Workload(name="mixed", repeated_prompts=0.5, classes=tuple(kinds))


def plain() -> Workload:
    """The default for dialects that have no words for steps: whatever the server makes of a prompt."""
    return Workload(name="plain", repeated_prompts=0.5, classes=(Kind(name="any"),))


def read_workload(path: Path) -> Workload:
    """A workload from a TOML or JSON file. Raises InvalidSetting, naming the field, what came and what is allowed."""
    try:
        content: Any = read_toml(path) if path.suffix == ".toml" else read_json(path)
    except OSError as error:
        raise InvalidSetting(f"--workload: {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        form = "TOML" if path.suffix == ".toml" else "JSON"
        raise InvalidSetting(f"--workload: {path} is not {form}: {error}; allowed: a .toml or .json file") from error
    try:
        workload = Workload.model_validate(content)
    except ValidationError as error:
        raise InvalidSetting(f"--workload: {path}: {explained(error)}") from error
    names = [kind.name for kind in workload.classes]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidSetting(f"--workload: {path}: classes: two are named {doubled[0]!r}; allowed: names of their own")
    return workload


def explained(error: ValidationError) -> str:
    """What is wrong, one field after the other: "classes.0.steps.1: got 0; ..."."""
    details = error.errors()
    places = [detail["loc"] for detail in details]
    # Of a list with a wrong item pydantic complains once more, as if it were too short.
    wrong = [detail for detail in details if not any(_is_within(place, detail["loc"]) for place in places)]
    told = [_explained(dict(detail)) for detail in wrong[:_MOST_TOLD]]
    return "; ".join([*told, f"and {len(wrong) - _MOST_TOLD} more"] if len(wrong) > _MOST_TOLD else told)


def _is_within(place: tuple[Any, ...], whole: tuple[Any, ...]) -> bool:
    return len(place) > len(whole) and place[: len(whole)] == whole


def _explained(detail: dict[str, Any]) -> str:
    *above, last = detail["loc"] or ("the whole",)
    where = ".".join(map(str, (*above, last)))
    if detail["type"] == "extra_forbidden":
        known = (Kind if "classes" in above else Workload).model_fields
        return f"{where}: got an unknown key; allowed: {', '.join(known)}"
    if detail["type"] == "missing":
        return f"{where}: is missing; it is needed"
    if detail["type"] == "too_short":
        return f"{where}: got {detail['input']!r}; allowed: one or more"
    got = repr(detail["input"])
    words = detail["msg"].removeprefix("Value error, ")
    return f"{where}: got {got if len(got) <= _SHOWN else got[:_SHOWN] + '…'}; {words[0].lower()}{words[1:]}"


def _drawn(kind: Kind, prompt: str, rng: random.Random, salt: int) -> BenchRequest:
    size = _SIZE.fullmatch(rng.choice(kind.sizes)) if kind.sizes else None
    return BenchRequest(
        kind.name,
        prompt,
        1 + (rng.randrange(_SEEDS) + salt) % _SEEDS,
        kind.negative_prompt,
        (int(size[1]), int(size[2])) if size else None,
        rng.choice(kind.steps) if kind.steps else None,
        rng.choice(kind.guidance) if kind.guidance else None,
    )


def _shuffled(prompts: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """All in some order, then all in another, and so on."""
    while True:
        yield from rng.sample(prompts, len(prompts))


_KNOWN = tuple(scene.prompt for scene in scenes())
