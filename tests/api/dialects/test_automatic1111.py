"""AUTOMATIC1111's dialect, with the client webuiapi, and with bodies that SillyTavern and Open WebUI send."""

import base64
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from PIL import ExifTags, Image
from starlette.testclient import TestClient
from webuiapi import WebUIApi

from sd35.access.keys import Role, new_key
from sd35.api.body import MAX_BODY_BYTES, parse_json
from sd35.api.dialects.automatic1111 import png_info
from sd35.api.dialects.automatic1111.png_info import MAX_PARSED_IMAGES
from sd35.api.sessions import Sessions
from sd35.content_filter import AllowAll, Decision
from sd35.generation.model_pool import ModelPool
from sd35.generation.replay import read_stored_image
from sd35.images.infotext import KEYWORD, parse_infotext, read_infotext
from sd35.images.png import write_png
from sd35.images.record import DIGEST_KEY, own_version
from tests.support.fake_backend import WAIT_S, FakeBackend, fake_pool, key_store
from tests.support.serving import listening, serving

PATH = "/sdapi/v1"
CAT: dict[str, Any] = {"prompt": "a cat", "seed": 7, "width": 128, "height": 128, "steps": 4}
INFOTEXT = "a castle\nNegative prompt: fog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768"


class BlurFilter(AllowAll):
    """A content filter that blurs "nude"."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Decide by a word of the prompt."""
        return Decision.BLUR if "nude" in prompt else Decision.ALLOW


@pytest.fixture
def api(address: tuple[str, int]) -> WebUIApi:
    """A webuiapi client of a server without keys."""
    return api_of(address)


def api_of(address: tuple[str, int], secret: str | None = None) -> WebUIApi:
    """Return a webuiapi client with timeouts, and with a key as its password."""
    api = WebUIApi(*address)
    api.session.request = partial(api.session.request, timeout=2 * WAIT_S)
    if secret:
        api.set_auth("any", secret)
    return api


@pytest.fixture
def two_clients(pool: ModelPool, backend: FakeBackend) -> Iterator[tuple[WebUIApi, WebUIApi]]:
    """The webuiapi clients of two users with keys."""
    keys = [new_key(name, Role.USER, 0) for name in ("one", "other")]
    with listening(pool, key_store(*(key for key, _ in keys))) as address:
        one, other = (api_of(address, secret) for _, secret in keys)
        yield one, other
        backend.release.set()


def wait_until(holds: Callable[[], bool]) -> None:
    """Call `holds` until it returns true, at most for `WAIT_S`."""
    until_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until_s


def start(backend: FakeBackend, work: Callable[[], Any]) -> Future[Any]:
    """Run `work` in a thread, and return its future once an image of it is being generated."""
    backend.started.clear()
    runner = ThreadPoolExecutor(1)
    future = runner.submit(work)
    runner.shutdown(wait=False)
    assert backend.started.wait(WAIT_S)
    return future


def cached_then_held(api: WebUIApi, backend: FakeBackend, count: int) -> Future[Any]:
    """Start a call of `count` images. The first is cached, and the second is held."""
    api.txt2img(**CAT)
    backend.hold()
    call = start(backend, lambda: api.txt2img(**CAT, batch_size=count))
    wait_until(lambda: api.get_progress()["state"]["job_no"] == 1)
    return call


def post(client: TestClient, **fields: Any) -> Any:
    """Request an image of a cat; `fields` replace or add to the body's fields."""
    return client.post(f"{PATH}/txt2img", json={"prompt": "a cat", **fields})


def error_of(response: Any, status: int) -> dict[str, str]:
    """Return the error in a response, after checking its status and format."""
    assert response.status_code == status, response.text
    content: dict[str, str] = response.json()
    assert set(content) == {"error", "detail", "body", "errors"}
    return content


def open_image(content: str) -> Image.Image:
    """Open an image in base64."""
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    image.load()
    return image


def test_the_file_and_info_contain_the_parameters(api: WebUIApi):
    result = api.txt2img(**CAT, negative_prompt="a dog", cfg_scale=4.5)
    assert result.image.size == (128, 128)
    text = result.image.info[KEYWORD]
    assert text.startswith(
        "a cat\nNegative prompt: a dog\n"
        "Steps: 4, Sampler: Euler, Schedule type: Automatic, CFG scale: 4.5, Seed: 7, Size: 128x128, Model hash: "
    )
    info = result.info
    assert info["infotexts"] == [text]
    assert (info["prompt"], info["negative_prompt"], info["seed"], info["steps"]) == ("a cat", "a dog", 7, 4)
    assert (info["width"], info["height"], info["cfg_scale"], info["sampler_name"]) == (128, 128, 4.5, "Euler")
    assert (info["sd_model_name"], info["sd_model_hash"]) == ("mini", parse_infotext(text)["Model hash"])
    assert result.parameters["sampler_name"] == "Euler a"
    request = read_stored_image(base64.b64decode(result.json["images"][0])).record.request
    assert (request.prompt, request.negative_prompt, request.guidance_scale, request.seed) == ("a cat", "a dog", 4.5, 7)


def test_the_seeds_of_all_images_are_consecutive(api: WebUIApi):
    result = api.txt2img(**CAT, batch_size=2, n_iter=2)
    assert result.info["all_seeds"] == [7, 8, 9, 10]
    assert [parse_infotext(image.info[KEYWORD])["Seed"] for image in result.images] == ["7", "8", "9", "10"]
    assert len({image.info[DIGEST_KEY] for image in result.images}) == 4
    assert all(len(result.info[name]) == 4 for name in ("all_prompts", "all_negative_prompts", "infotexts"))


def test_the_default_fields_of_webuiapi_do_not_change_the_image(api: WebUIApi):
    bare = requests.post(f"{api.baseurl}/txt2img", json={**CAT, "cfg_scale": 7}, timeout=WAIT_S).json()
    assert api.txt2img(**CAT).json["images"] == bare["images"]


def test_omitted_fields_have_the_models_defaults(pool: ModelPool):
    with serving(pool) as client:
        info = [
            parse_infotext(open_image(post(client, **seed).json()["images"][0]).info[KEYWORD])
            for seed in ({}, {"seed": -1})
        ]
    assert (info[0]["Size-1"], info[0]["Steps"], info[0]["CFG scale"]) == ("128", "4", "4.5")
    assert info[0]["Seed"] != info[1]["Seed"]


def test_another_sampler_is_replaced_by_euler(api: WebUIApi):
    result = api.txt2img(**CAT, sampler_name="DPM++ 2M Karras", scheduler="Karras")
    assert result.info["sampler_name"] == "Euler"
    assert "Sampler: Euler, Schedule type: Automatic" in result.info["infotexts"][0]


def test_a_strict_service_refuses_unknown_samplers_schedulers_and_checkpoints(pool: ModelPool):
    with serving(pool, strict_dialects=True) as client:
        for field, value in {"sampler_name": "Euler a", "sampler_index": "DDIM", "scheduler": "Karras"}.items():
            assert f"{field}: got '{value}'" in error_of(post(client, **{field: value}), 422)["errors"]
        assert post(client, sampler_name="Euler", sampler_index="DDIM", scheduler="automatic").status_code == 200
        for name, status in {"mini.safetensors": 200, "mini [0123456789]": 404}.items():
            assert post(client, override_settings={"sd_model_checkpoint": name}).status_code == status


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "prompt: got ''; allowed: text of 1 to 10000 characters"),
        ({"width": 100}, "width: got 100; allowed: an integer, a multiple of 16"),
        ({"steps": 0}, "steps: got 0; allowed: an integer from 1 to 150"),
        ({"cfg_scale": 31}, "cfg_scale: got 31; allowed: a number from 0 to 30"),
        ({"seed": 1.5}, "seed: got 1.5; allowed: an integer of at most 1,000 digits"),
        ({"seed": "any"}, "seed: got 'any'; allowed: an integer of at most 1,000 digits"),
        ({"n_iter": 17}, "n_iter: got 17; allowed: an integer from 1 to 16"),
        ({"batch_size": 5, "n_iter": 4}, "n_iter: got 4; allowed: 1 to 3, because batch_size is 5"),
        ({"enable_hr": True}, "enable_hr: got True; allowed: false"),
        ({"enable_hr": "yes"}, "enable_hr: got 'yes'; allowed: false"),
        ({"steps": "8.5"}, "steps: got '8.5'; allowed: an integer from 1 to 150"),
        ({"steps": True}, "steps: got True; allowed: an integer from 1 to 150"),
        ({"subseed_strength": 0.1}, "subseed_strength: got 0.1; allowed: 0"),
        ({"restore_faces": True}, "restore_faces: got True; allowed: false"),
        ({"tiling": True}, "tiling: got True; allowed: false"),
        ({"styles": ["anime"]}, "styles: got 'a list of length 1'; allowed: an empty list"),
        ({"script_name": "x/y/z plot"}, "script_name: got 'x/y/z plot'; allowed: empty"),
        (
            {"alwayson_scripts": "x"},
            "alwayson_scripts: got 'x'; allowed: an empty object, or scripts that are",
        ),
        ({"refiner_checkpoint": "xl"}, "refiner_checkpoint: got 'xl'; allowed: empty"),
        ({"s_churn": 1}, "s_churn: got 1; allowed: 0"),
        ({"seed_resize_from_w": 512}, "seed_resize_from_w: got 512; allowed: -1 or 0"),
        (
            {"alwayson_scripts": {"off": {}, "x": {"args": [True]}}},
            "alwayson_scripts: got 'x'; allowed: an empty object, or scripts",
        ),
        ({"clip_skip": "two"}, "clip_skip: got 'two'; allowed: a number"),
        ({"infotext": "Steps: 3"}, "infotext: got 'Steps: 3'; allowed: empty"),
        ({"init_images": ["AAAA"]}, "init_images: got 'a list of length 1'; allowed: an empty list"),
        ({"mask": "AAAA"}, "mask: got 'AAAA'; allowed: empty"),
        ({"override_settings": {"samples_format": "jpg"}}, "samples_format: got 'jpg'; allowed: png"),
        ({"override_settings": {"sd_vae": "mine"}}, "sd_vae: got 'mine'; allowed: Automatic, None or empty"),
        ({"override_settings": {"\ud800": {"a": float("nan")}}}, "allowed: nothing, because AUTOMATIC1111"),
        ({"force_task_id": "\ud800"}, "force_task_id: got"),
        ({"force_task_id": "x" * 201}, "allowed: at most 200 ASCII characters"),
        ({"denoising_strength": float("nan")}, "denoising_strength: got 'nan'; allowed: a number"),
    ],
)
def test_the_error_names_a_field_that_is_not_supported(pool: ModelPool, fields: dict[str, Any], message: str):
    with serving(pool) as client:
        response = client.post(
            f"{PATH}/txt2img",
            content=json.dumps({"prompt": "a cat", **fields}),
            headers={"content-type": "application/json"},
        )
    content = error_of(response, 422)
    assert message in content["errors"]
    assert message in content["detail"] or message.partition(";")[0] in content["detail"]


def test_progress_shows_the_clients_own_call_only(two_clients: tuple[WebUIApi, WebUIApi], backend: FakeBackend):
    one, other = two_clients
    backend.hold(in_decoding=True)
    fields = {**CAT, "width": 64, "force_task_id": "task(1)"}
    call = start(backend, lambda: one.session.post(f"{one.baseurl}/txt2img", json=fields))
    wait_until(lambda: one.get_progress()["state"]["sampling_step"] == 4)
    now, idle = one.get_progress(), other.get_progress()
    assert (now["progress"], now["current_task"], now["state"]["job"]) == (1, "task(1)", "task(1)")
    assert {name: now["state"][name] for name in ("job_count", "job_no", "sampling_steps", "interrupted")} == {
        "job_count": 1,
        "job_no": 0,
        "sampling_steps": 4,
        "interrupted": False,
    }
    assert open_image(now["current_image"]).size == (64, 128)
    quick = one.session.get(f"{one.baseurl}/progress", params={"skip_current_image": "true"}).json()
    assert quick["current_image"] is None
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    backend.release.set()
    assert call.result(WAIT_S).status_code == 200
    assert one.get_progress() == idle


def test_progress_is_above_zero_before_the_first_step(api: WebUIApi, backend: FakeBackend):
    """Clients take 0 for idle."""
    backend.hold()
    call = start(backend, lambda: api.txt2img(**CAT))
    now = api.get_progress()
    assert (now["progress"], now["eta_relative"], now["state"]["sampling_step"]) == (0.01, 0, 0)
    backend.release.set()
    call.result(WAIT_S)


def test_an_interruption_keeps_finished_images(api: WebUIApi, backend: FakeBackend):
    call = cached_then_held(api, backend, 3)
    assert api.interrupt() == {}
    result = call.result(WAIT_S)
    assert (len(result.images), result.info["all_seeds"]) == (1, [7])


def test_an_interruption_before_the_first_image_returns_no_images(api: WebUIApi, backend: FakeBackend):
    backend.hold()
    call = start(backend, lambda: api.txt2img(**CAT))
    api.interrupt()
    result = call.result(WAIT_S)
    assert (result.images, result.info["infotexts"], result.info["seed"]) == ([], [], 7)


def test_skipping_leaves_out_the_current_image(api: WebUIApi, backend: FakeBackend):
    call = cached_then_held(api, backend, 3)
    assert api.skip() is None
    state = api.get_progress()["state"]
    assert (state["skipped"], state["interrupted"], state["job_no"]) == (True, False, 2)
    backend.release.set()
    assert call.result(WAIT_S).info["all_seeds"] == [7, 9]


def test_a_client_cannot_interrupt_the_call_of_another(two_clients: tuple[WebUIApi, WebUIApi], backend: FakeBackend):
    one, other = two_clients
    backend.hold()
    call = start(backend, lambda: one.txt2img(**CAT))
    other.interrupt()
    other.skip()
    backend.release.set()
    assert len(call.result(WAIT_S).images) == 1


def test_a_disconnect_ends_the_call(api: WebUIApi, backend: FakeBackend):
    backend.hold()
    url = urlsplit(f"{api.baseurl}/txt2img")
    connection = HTTPConnection(url.netloc)
    connection.request("POST", url.path, json.dumps(CAT), {"Content-Type": "application/json"})
    assert backend.started.wait(WAIT_S)
    connection.close()
    wait_until(lambda: api.get_progress()["state"]["job_count"] == 0)


def test_a_checkpoint_is_chosen_for_one_client(two_clients: tuple[WebUIApi, WebUIApi]):
    """Open WebUI sets the title, with all other options unchanged."""
    one, other = two_clients
    titles = one.util_get_model_names()
    assert one.util_get_current_model() == titles[1]
    large = {**CAT, "width": 256, "height": 256, "steps": 1}
    one.set_options({**one.get_options(), "sd_model_checkpoint": titles[0]})
    assert titles[0].startswith("large [")
    assert one.util_get_current_model() == titles[0]
    assert one.txt2img(**large).info["sd_model_name"] == "large"
    assert one.txt2img(**CAT, override_settings={"sd_model_checkpoint": "mini"}).info["sd_model_name"] == "mini"
    assert other.util_get_current_model() == titles[1]
    assert other.txt2img(**CAT).info["sd_model_name"] == "mini"
    one.util_set_model("mini")
    assert one.util_get_current_model() == titles[1]


def test_options_that_would_change_images_are_refused(pool: ModelPool):
    with serving(pool) as client:
        wrong = client.post(f"{PATH}/options", json={"samples_format": "webp", "eta_ddim": 1, "eta_any": 1})
        assert "samples_format: got 'webp'; allowed: png" in error_of(wrong, 422)["errors"]
        assert "eta_any: got 1; allowed: nothing" in error_of(wrong, 422)["errors"]
        assert "eta_ddim" not in error_of(wrong, 422)["errors"]
        metadata_off = client.post(f"{PATH}/options", json={"enable_pnginfo": False})
        assert "enable_pnginfo: got False; allowed: true" in error_of(metadata_off, 422)["errors"]
        unknown = error_of(client.post(f"{PATH}/options", json={"sd_model_checkpoint": "v1-5"}), 404)
        assert unknown["error"] == "UnknownModel"
        assert unknown["errors"] == "sd_model_checkpoint: got 'v1-5'; allowed: mini, large"
        assert client.post(f"{PATH}/options", json=client.get(f"{PATH}/options").json()).json() is None


def test_a_checkpoint_has_several_names(pool: ModelPool):
    """Title, file name, hash and aliases. A hash in an alias is ignored."""
    with serving(pool, model_aliases=["sd3.5_large=large", "v1-5"]) as client:
        (mini, large) = client.get(f"{PATH}/sd-models").json()
        names = dict.fromkeys((mini["title"], mini["filename"], mini["hash"], mini["sha256"]), mini["model_name"])
        names |= {large["title"]: "large", "sd3.5_large.safetensors [ffef7a279d]": "large", "v1-5.ckpt": "mini"}
        names |= {"mini.safetensors": "mini", f"mini.safetensors [{mini['hash']}]": "mini", "": "mini"}
        for name, served in names.items():
            fields = {"width": 256, "height": 256, "steps": 1, "override_settings": {"sd_model_checkpoint": name}}
            answer = post(client, **fields, send_images=False)
            assert f", Model: {served}," in answer.json()["info"], name
            assert answer.json()["images"] == []


def test_only_the_last_thousand_used_choices_of_clients_are_stored():
    sessions = Sessions()
    for number in range(1000):
        sessions.choose_model(str(number), "mini")
    assert sessions.chosen_model("0") == "mini"
    sessions.choose_model("one more", "mini")
    assert (sessions.chosen_model("0"), sessions.chosen_model("1"), sessions.chosen_model("2")) == (
        "mini",
        None,
        "mini",
    )


def test_png_info_returns_the_texts_of_a_file(api: WebUIApi):
    result = api.txt2img(**CAT)
    answer = api.png_info(result.image)
    assert answer.info == result.info["infotexts"][0]
    assert (answer.parameters["Seed"], answer.parameters["Size-2"]) == ("7", "128")
    assert answer.json["items"][DIGEST_KEY] == result.image.info[DIGEST_KEY]


def png_info_of(client: TestClient, file: bytes, prefix: str = "") -> Any:
    """Return the response of `png-info` for a file."""
    return client.post(f"{PATH}/png-info", json={"image": prefix + base64.b64encode(file).decode()})


def test_png_info_reads_files_of_other_programs_and_dialects(pool: ModelPool):
    exif, jpeg, bare = Image.Exif(), io.BytesIO(), io.BytesIO()
    comment = b"UNICODE\0" + INFOTEXT.encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG", exif=exif)
    Image.new("RGBA", (8, 8)).save(bare, "PNG")
    with serving(pool) as client:
        theirs = png_info_of(client, jpeg.getvalue(), "data:image/jpeg;base64,").json()
        own = png_info_of(client, client.post("/v1/txt2img", json={"prompt": "a cat", "seed": 7}).content).json()
        without_text = png_info_of(client, bare.getvalue()).json()
    assert (theirs["info"], theirs["items"]) == (INFOTEXT, {})
    assert (theirs["parameters"]["Prompt"], theirs["parameters"]["Negative prompt"]) == ("a castle", "fog")
    assert (own["parameters"]["Prompt"], own["parameters"]["Seed"]) == ("a cat", "7")
    assert without_text == {"info": "", "items": {}, "parameters": {}, "left_out": []}


def test_a_file_may_be_larger_than_other_bodies(pool: ModelPool):
    file = io.BytesIO()
    Image.effect_noise((1400, 1400), 100).save(file, "PNG")
    assert len(file.getvalue()) > MAX_BODY_BYTES
    with serving(pool) as client:
        assert png_info_of(client, file.getvalue()).status_code == 200


@pytest.mark.parametrize("image", ["", "http://127.0.0.1/a.png", "????", "data:image/png", "AAAA", "\ud83d", 5])
def test_png_info_refuses_anything_but_an_image(pool: ModelPool, image: object):
    """It does not fetch URLs."""
    with serving(pool) as client:
        response = client.post(
            f"{PATH}/png-info", content=json.dumps({"image": image}), headers={"content-type": "application/json"}
        )
    assert "image: got" in error_of(response, 422)["errors"]


def test_texts_are_read_whatever_the_size_of_the_image(pool: ModelPool):
    """No pixel is decoded, so that a decompression bomb has no effect."""
    png = write_png(np.zeros((16, 16, 3), np.uint8), {KEYWORD: INFOTEXT})
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + png[24:29]
    png = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    with serving(pool) as client:
        assert png_info_of(client, png).json()["info"] == INFOTEXT


@pytest.mark.parametrize(
    "reformat",
    [
        lambda text: "\n".join(text[start : start + 76] for start in range(0, len(text), 76)),
        lambda text: f"  {text[:10]} \t\r\n{text[10:]}\r\n",
        lambda text: f"\n data:image/png;base64,\n{text}\n",
        lambda text: f"DATA:;base64,{text}",
    ],
    ids=["lines", "whitespace", "data URL", "data URL in capitals"],
)
def test_base64_may_have_whitespace_or_be_a_data_url(client: TestClient, reformat: Callable[[str], str]):
    file = write_png(np.zeros((16, 16, 3), np.uint8), {KEYWORD: INFOTEXT})
    image = reformat(base64.b64encode(file).decode())
    assert client.post(f"{PATH}/png-info", json={"image": image}).json()["info"] == INFOTEXT


def test_png_info_requests_count_against_the_rate_limit(pool: ModelPool):
    """Bodies that are not read as an image do not count."""
    file = write_png(np.zeros((16, 16, 3), np.uint8), {KEYWORD: INFOTEXT})
    with serving(pool, requests_per_minute=2) as client:
        assert client.post(f"{PATH}/png-info", json={"file": "a"}).status_code == 422
        assert png_info_of(client, file).status_code == 200
        assert png_info_of(client, b"no image").status_code == 422
        refused = png_info_of(client, file)
    assert error_of(refused, 429)["error"] == "TooMany"
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "text", ["a: b, " * 3_000_000, 'a: "' + "\\" * 20_000_000], ids=["many settings", "backslashes"]
)
def test_a_text_that_is_too_long_is_not_parsed(pool: ModelPool, monkeypatch: pytest.MonkeyPatch, text: str):
    parsed: list[str] = []

    def parse_and_record(text: str) -> dict[str, str]:
        parsed.append(text)
        return parse_infotext(text)

    monkeypatch.setattr(png_info, "parse_infotext", parse_and_record)
    png = write_png(np.zeros((16, 16, 3), np.uint8), {KEYWORD: text, "Software": "sd35"})
    with serving(pool) as client:
        answer = png_info_of(client, png).json()
    assert answer == {"info": "", "items": {"Software": "sd35"}, "parameters": {}, "left_out": [KEYWORD]}
    assert parsed == []


def test_only_a_few_images_are_parsed_at_once(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    """Keys and jobs can be read meanwhile."""
    release, start = threading.Event(), threading.Semaphore(0)
    were_released: list[bool] = []
    bodies = max_bodies = 0

    def counting(*args: Any) -> Any:
        nonlocal bodies, max_bodies
        bodies += 1
        max_bodies = max(max_bodies, bodies)
        return parse_json(*args)

    def slow(file: bytes) -> tuple[str, dict[str, str], list[str]]:
        nonlocal bodies
        start.release()
        were_released.append(release.wait(WAIT_S))
        bodies -= 1
        return read_infotext(file)

    monkeypatch.setattr(png_info, "parse_json", counting)
    monkeypatch.setattr(png_info, "read_infotext", slow)
    key, secret = new_key("me", Role.USER, 0)
    file = write_png(np.zeros((16, 16, 3), np.uint8), {KEYWORD: INFOTEXT})
    with serving(pool, key_store(key)) as client, ThreadPoolExecutor(8) as executor:
        client.headers["authorization"] = f"Bearer {secret}"
        answers = [executor.submit(png_info_of, client, file) for _ in range(8)]
        try:
            assert start.acquire(timeout=WAIT_S)
            assert client.get("/v1/jobs").status_code == 200
        finally:
            release.set()
        assert [answer.result(WAIT_S).status_code for answer in answers] == [200] * 8
    assert max_bodies <= MAX_PARSED_IMAGES
    assert all(were_released), "the event loop was blocked"


def test_a_key_is_sent_as_the_password_of_http_basic(pool: ModelPool):
    key, secret = new_key("me", Role.USER, 0)
    with serving(pool, key_store(key)) as client:
        missing = client.get(f"{PATH}/options")
        assert error_of(missing, 401)["error"] == "NotAuthenticated"
        assert missing.headers["www-authenticate"] == 'Basic realm="sd35", Bearer'
        assert client.get("/v1/models").headers["www-authenticate"] == "Bearer"
        assert client.get(f"{PATH}/options", auth=("any", "other")).status_code == 401
        assert client.get(f"{PATH}/options", auth=("any", secret)).status_code == 200


def test_rate_limits_work_in_this_dialect(pool: ModelPool):
    with serving(pool, pixels_per_hour=4 * 128 * 128) as client:
        assert "r=16384" in post(client, n_iter=3).headers["ratelimit"]
        refused = post(client, n_iter=2)
        assert error_of(refused, 429)["error"] == "TooMany"
        assert "retry-after" in refused.headers


def test_the_operator_can_leave_out_metadata(pool: ModelPool):
    with serving(pool, keep_metadata=False) as client:
        answer = post(client).json()
    assert open_image(answer["images"][0]).info == {}
    assert "Steps: 4" in answer["info"]


def test_info_says_that_an_image_is_blurred(pool: ModelPool):
    """The file has no text from which the image could be generated unblurred."""
    with serving(pool, content_filter=f"{__name__}:BlurFilter") as client:
        answer = post(client, prompt="a nude").json()
    assert '"Content filtered": "blurred"' in answer["info"]
    assert "Content filtered: blurred" in answer["info"]
    assert open_image(answer["images"][0]).info == {}


def test_an_idempotency_key_gives_the_same_images(pool: ModelPool):
    key = {"Idempotency-Key": "mine"}
    body = {"prompt": "a cat", "batch_size": 2}
    with serving(pool) as client:
        first, second = (client.post(f"{PATH}/txt2img", json=body, headers=key).json() for _ in range(2))
        assert first["images"] == second["images"]
        assert len(set(first["images"])) == 2
        error_of(client.post(f"{PATH}/txt2img", json={**body, "steps": 3}, headers=key), 409)


def test_the_routes_that_clients_read_at_startup_exist(api: WebUIApi):
    assert api.util_get_sampler_names() == ["Euler"]
    assert [each["label"] for each in api.get_schedulers()] == ["Automatic"]
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    empty = [api.get_upscalers(), api.get_latent_upscale_modes(), api.get_loras(), api.get_sd_vae()]
    empty += [api.get_hypernetworks(), api.get_face_restorers(), api.get_realesrgan_models(), api.get_prompt_styles()]
    assert empty == [[]] * 8
    assert api.refresh_checkpoints() is None
    for path in ("refresh-vae", "refresh-loras", "unload-checkpoint", "reload-checkpoint"):
        assert api.session.post(f"{api.baseurl}/{path}", json="").json() is None
    assert api.session.get(f"{api.baseurl}/sd-modules").json() == []
    assert api.get_cmd_flags()["api"]
    memory = api.get_memory()
    assert memory["ram"]["total"] == memory["ram"]["free"] + memory["ram"]["used"] > 0
    assert memory["cuda"] == {"error": "models run on the CPU"}
    api.util_wait_for_ready(check_interval=0)


def test_device_memory_is_reported(tmp_path: Path, backend: FakeBackend):
    class DeviceMemory:
        is_host = False

        def free_bytes(self) -> int:
            return 3

        def held_bytes(self) -> int:
            return 2

    backend.memory = DeviceMemory()  # type: ignore[assignment]
    with serving(fake_pool(tmp_path, backend)) as client:
        assert client.get(f"{PATH}/memory").json()["cuda"] == {"system": {"free": 3, "used": 2, "total": 5}}


def test_sillytavern_gets_its_image(pool: ModelPool):
    """Its own settings `url` and `auth` do not appear in the response."""
    body = {
        "url": "http://localhost:7860",
        "auth": "any:sd35_secret",
        "prompt": "a cat",
        "negative_prompt": "",
        "sampler_name": "DDIM",
        "scheduler": "normal",
        "steps": 4,
        "cfg_scale": 7,
        "width": 512,
        "height": 512,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 1.0,
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    with serving(pool) as client:
        response = post(client, **body)
    assert "Drawn size: 128x128" in response.json()["info"]
    assert open_image(response.json()["images"][0]).size == (512, 512)
    assert "sd35_secret" not in response.text
    assert own_version() in response.text


def test_metrics_name_this_dialect(pool: ModelPool):
    with serving(pool) as client:
        post(client)
        metrics = client.get("/metrics").text
    assert 'dialect="automatic1111"' in metrics


def test_progress_and_interrupt_apply_to_the_oldest_call(
    two_clients: tuple[WebUIApi, WebUIApi], pool: ModelPool, backend: FakeBackend
):
    one, _ = two_clients
    backend.hold()

    def call(name: str) -> Any:
        fields = {**CAT, "prompt": f"a {name} cat", "force_task_id": name}
        return one.session.post(f"{one.baseurl}/txt2img", json=fields).json()["images"]

    first = start(backend, partial(call, "first"))
    with ThreadPoolExecutor(1) as executor:
        second = executor.submit(call, "second")
        wait_until(lambda: pool.engine.status().waiting == 1)
        assert one.get_progress()["current_task"] == "first"
        one.interrupt()
        assert first.result(WAIT_S) == []
        assert one.get_progress()["current_task"] == "second"
        backend.release.set()
        assert len(second.result(WAIT_S)) == 1
