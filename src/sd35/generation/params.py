"""The parameters of a call, and the complete request that they become."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from sd35.engine.model_info import ModelInfo
from sd35.errors import InvalidSetting, UnknownModel
from sd35.request import SEED, Request


@dataclass(frozen=True)
class GenerationParams:
    """The parameters of a call to any API. None stands for a default: see `resolve`.

    The default `model` is the first one, and the default `seed` is random. A checkpoint's card, the file `sd35.json`,
    has the other defaults.
    """

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
    """Names of other services' models, and the models that this service uses instead.

    Attributes:
        aliases: The name of a served model by alias; "" is the default model.
        is_strict: Whether to refuse requests that need a substitute: for a model by its alias, or for a sampler that
            does not exist here.
    """

    aliases: Mapping[str, str]
    is_strict: bool

    @classmethod
    def of(cls, listed: Sequence[str], *, is_strict: bool) -> Self:
        """Parse the setting `model_aliases`. Each item is ALIAS, for the default model, or ALIAS=CHECKPOINT."""
        parts = [item.partition("=") for item in listed]
        return cls({alias.strip(): served.strip() for alias, _, served in parts}, is_strict)

    def check(self, models: Mapping[str, ModelInfo]) -> None:
        """Raise InvalidSetting if an alias names a model that is not served."""
        for alias, name in self.aliases.items():
            if name and name not in models:
                raise InvalidSetting(f"model_aliases: got '{alias}={name}'; allowed after '=': {', '.join(models)}")

    def served(self, name: str | None, models: Mapping[str, ModelInfo]) -> str | None:
        """Return the name of the model to use for a requested name. None stands for the default model.

        An alias becomes the name of its model, but not if `is_strict`. Other names are returned unchanged, even if no
        such model is served.
        """
        if name is None or name in models or self.is_strict:
            return name
        return self.aliases.get(name, name) or None


def series(params: GenerationParams, count: int) -> list[GenerationParams]:
    """Return `count` copies of `params` with consecutive seeds. After the largest seed, they continue from 0."""
    first = draw_seed() if params.seed is None else params.seed
    return [replace(params, seed=(first + index) % (SEED[1] + 1)) for index in range(count)]


def find_model(models: Mapping[str, ModelInfo], name: str | None) -> ModelInfo:
    """Return the named model, or the first one for None. Raises UnknownModel if the name is not served."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise UnknownModel(name, list(models))
    return models[name]


def resolve(params: GenerationParams, models: Mapping[str, ModelInfo]) -> Request:
    """Return a complete request: the model's defaults, or a random seed, replace the parameters that are None.

    Raises UnknownModel if the model is not served, InvalidRequest if a value is out of range.
    """
    model = find_model(models, params.model)
    card = model.card
    default_skip_layer_scale = model.skip_layers.scale if model.skip_layers else 0.0
    skip_layer_scale = default_skip_layer_scale if params.skip_layer_scale is None else params.skip_layer_scale
    return Request(
        prompt=params.prompt,
        negative_prompt=params.negative_prompt,
        width=card.width if params.width is None else params.width,
        height=card.height if params.height is None else params.height,
        steps=card.steps if params.steps is None else params.steps,
        guidance_scale=float(card.guidance_scale if params.guidance_scale is None else params.guidance_scale),
        seed=draw_seed() if params.seed is None else params.seed,
        model=model.name,
        revision=model.revision,
        profile=model.profile,
        skip_layer_scale=float(skip_layer_scale),
    )


def draw_seed() -> int:
    """Return a random seed that cannot be guessed from earlier ones."""
    return secrets.randbelow(SEED[1] + 1)
