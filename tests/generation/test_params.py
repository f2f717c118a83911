"""Aliases of models, and the seeds of several images."""

from pathlib import Path

import pytest

from sd35.errors import InvalidSetting
from sd35.generation.params import GenerationParams, ModelAliases, series
from sd35.request import SEED
from sd35.settings import Settings, load_settings
from tests.support.fake_backend import fake_pipeline, fake_pool
from tests.support.services import service_of


def aliases(**given: object) -> ModelAliases:
    """Return the aliases of settings."""
    settings: Settings = load_settings(given)
    return ModelAliases.of(settings.model_aliases, is_strict=settings.strict_dialects)


def test_an_alias_stands_for_a_served_model(tmp_path: Path):
    """The default model, or the named one. A served name is never an alias, and an unknown name stays as it is."""
    models = {name: fake_pipeline(tmp_path / name).info for name in ("mini", "large")}
    named = aliases(model_aliases="dall-e-3, gpt-image-1 = large, mini=large")
    names = [None, "dall-e-3", "gpt-image-1", "mini", "dall-e-2"]
    assert [named.served(name, models) for name in names] == [None, None, "large", "mini", "dall-e-2"]


def test_aliases_can_be_removed_or_refused(tmp_path: Path):
    """By `none`, or by the setting `strict_dialects`."""
    models = {"mini": fake_pipeline(tmp_path / "mini").info}
    assert aliases().served("dall-e-3", models) is None
    assert aliases(model_aliases="none").served("dall-e-3", models) == "dall-e-3"
    assert aliases(strict_dialects=True).served("dall-e-3", models) == "dall-e-3"


def test_an_alias_of_a_model_that_is_not_served_is_refused_at_the_start(tmp_path: Path):
    """The error lists the served models."""
    with (
        fake_pool(tmp_path) as pool,
        pytest.raises(InvalidSetting, match=r"got 'dall-e-3=huge'; allowed after '=': mini, large"),
    ):
        service_of(pool, model_aliases="dall-e-3=huge")


def test_the_seeds_of_several_images_are_consecutive():
    """The first is random if omitted. The largest seed is followed by 0."""
    assert [each.seed for each in series(GenerationParams("a", seed=SEED[1] - 1), 3)] == [SEED[1] - 1, SEED[1], 0]
    random = series(GenerationParams("a"), 2)
    assert random[0].seed is not None
    assert random[1].seed == (random[0].seed + 1) % (SEED[1] + 1)
