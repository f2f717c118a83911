"""From what was wanted to a request with nothing left open."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from sd35.errors import InvalidSetting, UnknownModel
from sd35.generation.model import Model
from sd35.request import SEED, Request


@dataclass(frozen=True)
class GenerationParams:
    """What a caller asked for, whatever the dialect. None is left to the model's card, `seed` to chance."""

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    model: str | None = None
    skip_layer_scale: float | None = None


@dataclass(frozen=True)
class ModelAliases:
    """What clients of other services may call the models: `aliases` of served names, "" for the first.

    Where it is `is_strict`, nothing is served by another name, or by what is not quite the thing that was asked for.
    """

    aliases: Mapping[str, str]
    is_strict: bool

    @classmethod
    def of(cls, listed: Sequence[str], *, is_strict: bool) -> Self:
        """Of aliases as they are set: NAME, or NAME=CHECKPOINT."""
        parts = [each.partition("=") for each in listed]
        return cls({name.strip(): served.strip() for name, _, served in parts}, is_strict)

    def check(self, models: Mapping[str, Model]) -> None:
        """Raises InvalidSetting where an alias is of a model that is not served."""
        for alias, name in self.aliases.items():
            if name and name not in models:
                raise InvalidSetting(
                    f"model_aliases: {alias}={name}: no model named {name}; served: {', '.join(models)}"
                )

    def served(self, name: str | None, models: Mapping[str, Model]) -> str | None:
        """The name by which a model that a client asks for is served, None for the first; unknown ones as they came."""
        if name is None or name in models or self.is_strict:
            return name
        return self.aliases.get(name, name) or None


def series(wanted: GenerationParams, count: int) -> list[GenerationParams]:
    """The same so many times, each with the next seed after the first's, and 0 after the largest."""
    first = draw_seed() if wanted.seed is None else wanted.seed
    return [replace(wanted, seed=(first + place) % (SEED[1] + 1)) for place in range(count)]


def find_model(models: Mapping[str, Model], name: str | None) -> Model:
    """The named model; the first one for None. Raises UnknownModel."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise UnknownModel(name, list(models))
    return models[name]


def resolve(wanted: GenerationParams, models: Mapping[str, Model]) -> Request:
    """Fill in the card's defaults, draw the seed, name what makes the image. Raises UnknownModel, InvalidRequest."""
    model = find_model(models, wanted.model)
    card = model.card
    skip_layer_scale = model.skip_layers.scale if model.skip_layers else 0.0
    return Request(
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        width=card.width if wanted.width is None else wanted.width,
        height=card.height if wanted.height is None else wanted.height,
        steps=card.steps if wanted.steps is None else wanted.steps,
        guidance_scale=float(card.guidance_scale if wanted.guidance_scale is None else wanted.guidance_scale),
        seed=draw_seed() if wanted.seed is None else wanted.seed,
        model=model.name,
        revision=model.checkpoint.revision,
        profile=model.profile,
        skip_layer_scale=float(skip_layer_scale if wanted.skip_layer_scale is None else wanted.skip_layer_scale),
    )


def draw_seed() -> int:
    """A seed nobody can guess from the last one."""
    return secrets.randbelow(SEED[1] + 1)
