"""What clients of other services call a model, and the seeds of several pictures."""

from pathlib import Path

import pytest

from sd35.errors import InvalidSetting
from sd35.generation.params import Naming, Wanted, series
from sd35.request import SEED
from sd35.settings import Settings, load_settings
from tests.support.fake_backend import double_model, double_studio
from tests.support.services import service_of


def naming(**given: object) -> Naming:
    """As the settings say."""
    settings: Settings = load_settings(given)
    return Naming.of(settings.model_aliases, is_strict=settings.strict_dialects)


def test_an_alias_is_a_served_model(tmp_path: Path):
    """The first, or the one it names; what is served goes by its own name, and what is unknown stays so."""
    models = {name: double_model(tmp_path / name) for name in ("mini", "large")}
    named = naming(model_aliases="dall-e-3, gpt-image-1 = large, mini=large")
    asked = [None, "dall-e-3", "gpt-image-1", "mini", "dall-e-2"]
    assert [named.served(name, models) for name in asked] == [None, None, "large", "mini", "dall-e-2"]


def test_aliases_can_be_emptied_or_refused(tmp_path: Path):
    """By `none`, or by the strict setting: then a name is what it is."""
    models = {"mini": double_model(tmp_path / "mini")}
    assert naming().served("dall-e-3", models) is None
    assert naming(model_aliases="none").served("dall-e-3", models) == "dall-e-3"
    assert naming(strict_dialects=True).served("dall-e-3", models) == "dall-e-3"


def test_an_alias_of_what_is_not_served_is_refused_at_the_start(tmp_path: Path):
    """With the names that are served."""
    with (
        double_studio(tmp_path) as studio,
        pytest.raises(InvalidSetting, match=r"dall-e-3=huge: .* served: mini, large"),
    ):
        service_of(studio, model_aliases="dall-e-3=huge")


def test_seeds_of_several_pictures_follow_each_other():
    """From the first one's, which is drawn where none is named; after the largest comes 0."""
    assert [each.seed for each in series(Wanted("a", seed=SEED[1] - 1), 3)] == [SEED[1] - 1, SEED[1], 0]
    drawn = series(Wanted("a"), 2)
    assert drawn[0].seed is not None
    assert drawn[1].seed == (drawn[0].seed + 1) % (SEED[1] + 1)
