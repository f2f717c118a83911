"""AUTOMATIC1111's dialect reads values as leniently as AUTOMATIC1111, because its clients rely on it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sd35.api.body import parse_object, validate
from sd35.api.dialects.automatic1111.body import Txt2Img
from sd35.api.dialects.automatic1111.settings import read_settings
from sd35.api.errors import ApiError
from sd35.generation.model_pool import ModelPool
from sd35.images.infotext import KEYWORD
from tests.api.dialects.test_automatic1111 import CAT, PATH, error_of, open_image, post
from tests.support.serving import serving

UNSET: list[Any] = [None, "", "None", "none", [], {}, False, 0]


@pytest.fixture
def client(pool: ModelPool) -> Iterator[TestClient]:
    """A client of a server with the default settings."""
    with serving(pool) as client:
        yield client


def info_of(response: Any) -> dict[str, Any]:
    """Return `info` of a successful response."""
    assert response.status_code == 200, response.text
    info: dict[str, Any] = json.loads(response.json()["info"])
    return info


def parse(**fields: Any) -> Txt2Img:
    """Parse a body of a prompt and `fields`."""
    return validate({"prompt": "a cat", **fields}, Txt2Img)


def test_numbers_as_text_give_the_same_image(client: TestClient):
    plain = post(client, **CAT, cfg_scale=4.5).json()
    for fields in (
        {"seed": "7", "width": " 128 ", "height": "128.0", "steps": "4", "cfg_scale": "4.5"},
        {"seed": 7.0, "width": 128.0, "height": "+128", "steps": 4.0, "cfg_scale": " 4.50 "},
    ):
        answer = post(client, **{**CAT, **fields}).json()
        assert answer["images"] == plain["images"]
        assert (answer["parameters"]["seed"], answer["parameters"]["steps"]) == (7, 4)


@given(st.integers(-(2**70), 2**70))
def test_any_integer_is_read_from_text_and_from_a_number(number: int):
    assert parse(seed=number).seed == parse(seed=str(number)).seed == parse(seed=f" {number}.0 ").seed == number


@given(st.floats(0, 30, allow_nan=False))
def test_any_number_is_read_from_text(number: float):
    assert parse(cfg_scale=str(number)).cfg_scale == parse(cfg_scale=f"{number:.17e}").cfg_scale == number


@pytest.mark.parametrize(
    "value", ["0x10", "1_000", "8.5", "8e0", "eight", "--8", "٨", "NaN", "Infinity", [8], {"a": 8}]
)
def test_text_that_is_not_an_integer_is_refused(value: object):
    with pytest.raises(ApiError, match="steps: got"):
        parse(steps=value)


@pytest.mark.parametrize("field", ["seed", "subseed"])
@pytest.mark.parametrize("form", ["{}", "-{}", '"{}"', '"-{}"'])
def test_an_integer_may_have_a_thousand_digits(field: str, form: str):
    """The error for a longer one names the limit."""
    sign = -1 if "-" in form else 1
    body = '{{"prompt": "a cat", "{}": {}}}'.format
    longest = validate(parse_object(body(field, form.format("9" * 1000)).encode()), Txt2Img)
    assert getattr(longest, field) == sign * (10**1000 - 1)
    for digits in (1001, 4301, 500_000):
        content = body(field, form.format("9" * digits)).encode()
        with pytest.raises(ApiError, match=f"{field}: got .*; allowed: an integer of at most 1,000 digits"):
            validate(parse_object(content), Txt2Img)


@pytest.mark.parametrize(
    ("value", "is_on"), [("false", False), ("0", False), (0, False), ("TRUE", True), (1, True)], ids=repr
)
def test_switches_are_read_from_text_and_numbers(value: object, is_on: bool):  # noqa: FBT001  a parameter of the test
    assert parse(send_images=value).send_images is is_on


def test_null_and_empty_numbers_are_the_models_defaults(client: TestClient):
    bare = info_of(post(client, seed=7))
    for value in (None, "", " "):
        info = info_of(post(client, seed=7, width=value, height=value, steps=value, cfg_scale=value, subseed=value))
        assert {**info, "job_timestamp": ""} == {**bare, "job_timestamp": ""}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(number=st.integers(-(2**64), 2**64).filter(lambda number: number != -1), is_text=st.booleans())
def test_any_seed_is_used_modulo_2_to_the_32(client: TestClient, number: int, is_text: bool):  # noqa: FBT001
    response = post(client, **{**CAT, "seed": str(number) if is_text else number})
    used = number % 2**32
    assert info_of(response)["seed"] == response.json()["parameters"]["seed"] == used
    assert f"Seed: {used}," in open_image(response.json()["images"][0]).info[KEYWORD]


@pytest.mark.parametrize("seed", [-1, "-1", -1.0, "", " ", None], ids=repr)
def test_a_seed_that_is_not_set_is_random(client: TestClient, seed: object):
    answers = [post(client, **{**CAT, "seed": seed}) for _ in range(2)]
    seeds = {info_of(answer)["seed"] for answer in answers}
    assert seeds == {answer.json()["parameters"]["seed"] for answer in answers}
    assert len(seeds) == 2
    assert min(seeds) >= 0


@pytest.mark.parametrize("value", UNSET, ids=repr)
@pytest.mark.parametrize(
    "field",
    [
        *("styles", "script_name", "alwayson_scripts", "refiner_checkpoint", "infotext", "init_images", "mask"),
        *("firstpass_image", "controlnet_units"),
    ],
)
def test_empty_values_of_unsupported_fields_are_accepted(field: str, value: object):
    assert getattr(parse(**{field: value}), field) is None


@pytest.mark.parametrize(
    "scripts",
    [
        *({"a": None}, {"a": {"args": []}}, {"a": {"args": [False, {"model": "x"}]}}),
        *({"controlnet": {"args": [{"enabled": False}, {"enabled": "false"}]}}, []),
        *({"a": {}}, {"a": []}, {"a": {"args": {}}}, {"a": {"args": None}}, {"a": {"alias": "x"}}),
        *({"a": {"args": [first, 512, {"enabled": False}]}} for first in (0, "false", "False", None, "", "None")),
        *({"ControlNet": {"args": [None]}}, {"ControlNet": {"args": [{}]}}, {"ControlNet": {"args": [{}, None]}}),
        {"ADetailer": {"args": [{"ad_model": "None"}]}},
        {"ADetailer": {"args": [True, False, {"ad_model": "None"}, {"ad_model": "x", "ad_tab_enable": False}]}},
        {"AnimateDiff": {"args": [{"enable": False}]}},
    ],
)
def test_scripts_that_are_turned_off_are_accepted(scripts: object):
    """Clients send the settings of extensions that are off."""
    assert parse(alwayson_scripts=scripts).alwayson_scripts is None


@pytest.mark.parametrize(
    "args",
    [
        *([True], [{"enabled": True}], [{"enabled": False}, {"model": "x"}], "x", {"a": 1}, [1], ["x"], [True, {}]),
        *([None, {"enabled": True}], [{}, {"enabled": True}], [{"enabled": False}, "x"]),
        *([{"ad_model": "face"}], [True, False, {"ad_model": "None"}, {"ad_model": "face"}], [{"enable": True}]),
    ],
)
def test_scripts_that_are_on_are_refused(args: object):
    """The error names the first script that is on."""
    with pytest.raises(ApiError, match="alwayson_scripts: got 'controlnet'; allowed"):
        parse(alwayson_scripts={"off": {}, "controlnet": {"args": args}, "also": {"args": [True]}})


@pytest.mark.parametrize(
    "given_settings",
    [
        {"sd_vae": "automatic", "sd_unet": "None", "sd_hypernetwork": "none", "sd_lora": "None"},
        {"samples_format": "PNG", "emphasis": "Original", "sd_vae_decode_method": "Full", "randn_source": "CPU"},
        {"comma_padding_backtrack": "20", "s_churn": "0.0", "tiling": "false", "token_merging_ratio": 0},
        {"CLIP_stop_at_last_layers": 12, "eta_noise_seed_delta": 31337, "return_grid": True, "jpeg_quality": 10},
        {"sd_vae": None, "tiling": None, "randn_source": "", "forge_additional_modules": []},
        {"of_an_extension": None, "of_another": False, "and_another": ""},
    ],
)
def test_settings_that_change_nothing_are_accepted(client: TestClient, given_settings: dict[str, Any]):
    plain = post(client, **CAT).json()
    assert post(client, **CAT, override_settings=given_settings).json()["images"] == plain["images"]
    assert client.post(f"{PATH}/options", json=given_settings).json() is None


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("sd_vae", "vae-ft-mse.safetensors", "Automatic, None or empty"),
        ("sd_hypernetwork", "anime", "None or empty"),
        ("samples_format", "jpg", "png or empty"),
        ("tiling", True, "false or empty"),
        ("face_restoration", "yes", "false or empty"),
        ("comma_padding_backtrack", 0, "20 or empty"),
        ("randn_source", "NV", "GPU, CPU or empty"),
        ("s_churn", 5, "0 or empty"),
        ("sgm_noise_multiplier", True, "false or empty"),
        ("forge_additional_modules", ["ae.safetensors"], "empty"),
        ("of_an_extension", 3, "nothing, because AUTOMATIC1111 1.10 has no such setting"),
        ("sd_model_checkpoint", 5, "a title, name or alias of a checkpoint"),
        ("enable_pnginfo", "perhaps", "true or false"),
    ],
)
def test_settings_that_change_the_image_are_refused(client: TestClient, setting: str, value: object, allowed: str):
    for response in (
        post(client, override_settings={setting: value, "jpeg_quality": 80}),
        client.post(f"{PATH}/options", json={setting: value, "jpeg_quality": 80}),
    ):
        errors = error_of(response, 422)["errors"]
        assert errors.startswith(f"{setting}: got")
        assert f"allowed: {allowed}" in errors
        assert "jpeg_quality" not in errors


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())))
def test_settings_of_any_shape_are_read_or_refused(given_settings: dict[str, Any]):
    """The error names at most ten, and counts the rest."""
    try:
        read_settings(given_settings)
        refused = 0
    except ApiError as error:
        refused = len(error.errors)
    assert refused <= 11


def test_a_call_can_leave_out_metadata(client: TestClient):
    answer = post(client, **CAT, override_settings={"enable_pnginfo": False}).json()
    assert open_image(answer["images"][0]).info == {}
    assert KEYWORD in open_image(post(client, **CAT).json()["images"][0]).info


def test_the_job_of_a_call_without_metadata_has_the_url_of_a_file_without_metadata(client: TestClient):
    body = {**CAT, "override_settings": {"enable_pnginfo": False}}
    client.post(f"{PATH}/txt2img", json=body, headers={"Idempotency-Key": "bare"})
    (job,) = client.get("/v1/jobs").json()["data"]
    assert job["image"]["url"].endswith("?metadata=false")


def test_fields_that_automatic1111_does_not_have_are_ignored_and_named(client: TestClient):
    """The header names at most ten."""
    fields: dict[str, Any] = {f"field {number}": {"a": [number]} for number in range(12)}
    response = post(client, **CAT, **fields)
    ignored = response.headers["x-sd35-ignored"].split(", ")
    assert ignored == [*(f"field%20{number}" for number in range(10)), "and 2 more"]
    assert not fields.keys() & response.json()["parameters"].keys()
    lone = client.post(f"{PATH}/txt2img", content=json.dumps({**CAT, "\ud800" * 1000: 1}))
    assert lone.status_code == 200
    assert len(lone.headers["x-sd35-ignored"]) < 500


def test_a_strict_service_refuses_fields_that_automatic1111_does_not_have(pool: ModelPool):
    with serving(pool, strict_dialects=True) as client:
        message = error_of(post(client, quick_steps=12), 422)["errors"]
        assert "quick_steps: got 12; allowed: only known fields (prompt, " in message
        assert post(client, **CAT, sampler_name="Euler").status_code == 200


def test_equal_bodies_in_different_spellings_share_an_idempotency_key(client: TestClient):
    key = {"Idempotency-Key": "spelling"}
    first = client.post(f"{PATH}/txt2img", json=CAT, headers=key)
    second = client.post(f"{PATH}/txt2img", json={**CAT, "seed": "7", "steps": 4.0}, headers=key)
    assert first.json()["images"] == second.json()["images"]
