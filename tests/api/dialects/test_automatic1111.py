"""A1111's dialect, by the client webuiapi, and by raw calls as SillyTavern makes them."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from webuiapi import WebUIApi

from sd35.service.keys import Role, new_key
from sd35.service.studio import Studio
from tests.api.conftest import cancellations, listening
from tests.double import WAIT_S, NumpyBackend, double_studio, key_store

ROOT = "/sdapi/v1"
SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 4, "cfg_scale": 4.5}


@pytest.fixture
def server(studio: Studio, backend: NumpyBackend) -> Iterator[tuple[str, int]]:
    """Host and port of a real server."""
    with listening(studio) as address:
        yield address
        backend.release.set()


@pytest.fixture
def api(server: tuple[str, int]) -> WebUIApi:
    """Their client."""
    return WebUIApi(*server)


def ask(server: tuple[str, int], path: str, body: Any = None, **more: Any) -> requests.Response:
    """A raw call."""
    url = f"http://{server[0]}:{server[1]}{ROOT}/{path}"
    if body is None:
        return requests.get(url, timeout=WAIT_S, **more)
    return requests.post(url, json=body, timeout=WAIT_S, **more)


def refused(response: requests.Response, status: int) -> dict[str, str]:
    """An error of theirs."""
    assert response.status_code == status, response.text
    error: dict[str, str] = response.json()
    assert set(error) == {"error", "detail", "body", "errors"}
    return error


def test_their_client_gets_pictures_with_following_seeds(api: WebUIApi):
    """batch_size times n_iter, and `info` says what was really used: Euler, whatever was asked for."""
    result = api.txt2img(prompt="a cat", negative_prompt="a dog", seed=7, batch_size=2, n_iter=2, **SMALL)
    assert [image.size for image in result.images] == [(128, 128)] * 4
    info = result.info
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert (info["sampler_name"], info["sd_model_name"], info["prompt"], info["seed"]) == ("Euler", "mini", "a cat", 7)
    assert (info["cfg_scale"], info["steps"], info["width"], info["negative_prompt"]) == (4.5, 4, 128, "a dog")
    assert result.parameters["sampler_name"] == "Euler a"
    assert [image.info["parameters"] for image in result.images] == info["infotexts"]
    assert info["infotexts"][1].startswith("a cat\nNegative prompt: a dog\nSteps: 4, Sampler: Euler, ")


def test_their_defaults_are_accepted_as_they_are(api: WebUIApi):
    """All the fields that the client sends where nothing is said, at a random seed."""
    first, second = (api.txt2img(prompt="a cat", **SMALL).info["seed"] for _ in range(2))
    assert first != second


def test_sillytaverns_request_is_accepted_as_it_is(server: tuple[str, int]):
    """All that it sends, with what it was told itself; its secret is not told again."""
    body = {
        "url": "http://127.0.0.1:7860",
        "auth": "any:secret",
        "prompt": "a cat",
        "negative_prompt": "",
        "steps": 4,
        "sampler_name": "DDIM",
        "scheduler": "automatic",
        "cfg_scale": 7,
        "width": 128,
        "height": 128,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 1,
        "clip_skip": 1,
        "hr_additional_modules": [],
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "send_images": True,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "save_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    response = ask(server, "txt2img", body)
    assert len(response.json()["images"]) == 1
    assert "any:secret" not in response.text


def test_a_picture_says_what_made_it(api: WebUIApi):
    """png-info reads its text, and of a file without any, none."""
    image = api.txt2img(prompt="a cat", seed=7, **SMALL).image
    found = api.png_info(image)
    assert found.info == image.info["parameters"]
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    bare = {"image": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
    assert api.session.post(f"{api.baseurl}/png-info", json=bare, timeout=WAIT_S).json()["info"] == ""


def test_a_picture_of_our_own_dialect_is_read_too(server: tuple[str, int]):
    """Its record becomes A1111's text."""
    url = f"http://{server[0]}:{server[1]}/v1/txt2img"
    png = requests.post(url, json={"prompt": "a cat", "seed": 7}, timeout=WAIT_S).content
    found = ask(server, "png-info", {"image": base64.b64encode(png).decode()}).json()
    assert found["parameters"]["Prompt"] == "a cat"
    assert found["parameters"]["Seed"] == "7"
    assert "sd35.request" in found["items"]


def test_what_is_no_picture_is_refused(server: tuple[str, int]):
    """By the field's name."""
    for image in ("not base64!", base64.b64encode(b"no picture").decode()):
        assert "image: got" in refused(ask(server, "png-info", {"image": image}), 422)["detail"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": ""}, "prompt: got ''"),
        ({"enable_hr": True}, "enable_hr: got True; allowed: false or null"),
        ({"styles": ["x"]}, "styles: got 'a list of 1'"),
        ({"script_name": "x/y/z"}, "script_name"),
        ({"alwayson_scripts": {"ControlNet": {}}}, "alwayson_scripts"),
        ({"batch_size": 5, "n_iter": 5}, "n_iter: got 5; allowed: at most 16 pictures"),
        ({"override_settings": {"sd_vae": "x"}}, "override_settings.sd_vae: got 'x'"),
        ({"override_settings": {"eta": 1}}, "override_settings.eta: got 1; allowed: only sd_model_checkpoint"),
        ({"foo": 1}, "foo: got 1; allowed: only"),
        ({"width": 100}, "width: got 100"),
        ({"steps": "many"}, "steps: got 'many'"),
    ],
)
def test_what_is_not_here_is_refused_by_name(server: tuple[str, int], fields: dict[str, Any], words: str):
    """With what came and what is allowed."""
    assert words in refused(ask(server, "txt2img", {"prompt": "a cat", **fields}), 422)["detail"]


def test_a_checkpoint_is_chosen_for_one_client_by_its_title(api: WebUIApi, server: tuple[str, int]):
    """By the options as they came, as their client does; a call's own setting goes first."""
    titles = [model["title"] for model in api.get_sd_models()]
    assert [title.split(" ")[0] for title in titles] == ["mini", "large"]
    options = api.get_options()
    assert options["sd_model_checkpoint"] == titles[0]
    api.set_options({**options, "sd_model_checkpoint": titles[1]})
    assert api.get_options()["sd_model_checkpoint"] == titles[1]
    assert (
        api.txt2img(prompt="a cat", seed=1, **{**SMALL, "width": 256, "height": 256}).info["sd_model_name"] == "large"
    )
    own = {"sd_model_checkpoint": "mini.safetensors"}
    assert api.txt2img(prompt="a cat", override_settings=own, **SMALL).info["sd_model_name"] == "mini"
    old = {"sd_model_checkpoint": "v1-5-pruned-emaonly.safetensors [6ce0161689]"}
    assert api.txt2img(prompt="a cat", override_settings=old, **SMALL).info["sd_model_name"] == "mini"
    refused(ask(server, "options", {"sd_model_checkpoint": "sd9"}), 404)
    assert "only sd_model_checkpoint" in refused(ask(server, "options", {"eta": 1}), 422)["detail"]


def test_what_clients_look_up_is_there(api: WebUIApi):
    """What webuiapi and SillyTavern ask for: one sampler, one schedule, and lists of nothing."""
    assert [sampler["name"] for sampler in api.get_samplers()] == ["Euler"]
    assert [schedule["label"] for schedule in api.get_schedulers()] == ["Automatic"]
    assert api.get_memory()["ram"]["total"] > 0
    assert api.get_cmd_flags()["api"] is True
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    for empty in (api.get_upscalers, api.get_loras, api.get_hypernetworks, api.get_face_restorers, api.get_sd_vae):
        assert empty() == []
    api.refresh_checkpoints()
    refused(api.session.post(f"{api.baseurl}/img2img", json={}, timeout=WAIT_S), 404)


def test_progress_is_of_ones_own_call_and_interrupting_keeps_what_is_made(studio: Studio, backend: NumpyBackend):
    """Another key's client sees nothing, and stops nothing."""
    keys = [new_key(name, Role.USER, 0.0) for name in ("me", "you")]
    with listening(studio, keys=key_store(*(key for key, _ in keys))) as address, ThreadPoolExecutor() as pool:
        mine, yours = (WebUIApi(*address, username="any", password=secret) for _, secret in keys)
        making = pool.submit(lambda: mine.txt2img(prompt="held", seed=7, batch_size=2, **SMALL))
        assert backend.started.wait(WAIT_S)
        idle = yours.get_progress()
        assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
        yours.interrupt()
        yours.skip()
        busy = mine.get_progress()
        assert (busy["state"]["job_count"], busy["state"]["sampling_steps"], busy["state"]["job_no"]) == (2, 4, 0)
        assert not busy["state"]["interrupted"]
        mine.interrupt()
        backend.release.set()
        result = making.result(WAIT_S)
        assert result.images == []
        assert result.info["all_seeds"] == []
        assert mine.get_progress()["state"]["job_count"] == 0


def test_progress_shows_the_picture_so_far(tmp_path: Path):
    """Steps, the share that is done, and a preview of the picture's size, unless it is not wanted."""
    seen = threading.Event()

    class Slow(NumpyBackend):
        def denoise_step(self, rows: Any) -> Any:
            if any(row.sigma < 1 for row in rows):
                assert seen.wait(WAIT_S)
            return super().denoise_step(rows)

    slow = Slow()
    with double_studio(tmp_path, slow) as studio, listening(studio) as address, ThreadPoolExecutor() as pool:
        api = WebUIApi(*address)
        making = pool.submit(lambda: api.txt2img(prompt="a cat", **SMALL))
        while not (busy := api.get_progress())["progress"]:
            assert not making.done()
        assert (busy["progress"], busy["state"]["sampling_step"]) == (0.25, 1)
        with Image.open(io.BytesIO(base64.b64decode(busy["current_image"]))) as image:
            assert image.size == (128, 128)
        assert ask(address, "progress?skip_current_image=true").json()["current_image"] is None
        seen.set()
        assert making.result(WAIT_S).image.size == (128, 128)


def test_skipping_leaves_out_one_picture(api: WebUIApi, backend: NumpyBackend):
    """The one whose turn it is; the next ones come."""
    with ThreadPoolExecutor() as pool:
        making = pool.submit(lambda: api.txt2img(prompt="held", seed=7, n_iter=2, **SMALL))
        assert backend.started.wait(WAIT_S)
        api.skip()
        backend.release.set()
        assert making.result(WAIT_S).info["all_seeds"] == [8]


def test_who_hangs_up_stops_the_pictures(server: tuple[str, int], studio: Studio, backend: NumpyBackend):
    """Before the next step."""
    cancelled = cancellations(studio)
    with pytest.raises(requests.Timeout):
        requests.post(f"http://{server[0]}:{server[1]}{ROOT}/txt2img", json={"prompt": "held"}, timeout=(WAIT_S, 0.2))
    assert cancelled.wait(WAIT_S)
    backend.release.set()
    assert ask(server, "txt2img", {"prompt": "a cat"}).status_code == 200
    assert backend.steps.count("held") <= 1


def test_keys_limits_and_metrics_hold_here_too(studio: Studio):
    """A key is a password, as their clients send it; requests count under the dialect's name."""
    key, secret = new_key("someone", Role.USER, 0.0)
    with listening(studio, keys=key_store(key), requests_per_minute=1) as address:
        unknown = ask(address, "txt2img", {"prompt": "a cat"}, auth=("any", "wrong"))
        assert refused(unknown, 401)["error"] == "NotAuthenticated"
        assert "Basic" in unknown.headers["www-authenticate"]
        api = WebUIApi(*address, username="any", password=secret)
        assert api.txt2img(prompt="a cat", seed=1, **SMALL).image
        limited = ask(address, "txt2img", {"prompt": "a cat"}, auth=("any", secret))
        assert refused(limited, 429)["error"] == "TooMany"
        metrics = requests.get(f"http://{address[0]}:{address[1]}/metrics", auth=("any", secret), timeout=WAIT_S).text
    assert (
        f'sd35_http_requests_total{{dialect="automatic1111",method="POST",route="{ROOT}/txt2img",status="200"}} 1.0'
        in metrics
    )


def test_strict_means_that_nothing_else_is_served(studio: Studio):
    """Neither another sampler or schedule, nor another name."""
    with listening(studio, strict_dialects=True) as address:
        wrong: list[tuple[dict[str, Any], int, str]] = [
            ({"sampler_name": "Euler a"}, 422, "sampler_name: got 'Euler a'; allowed: Euler"),
            ({"sampler_name": "Euler", "scheduler": "Karras"}, 422, "scheduler: got 'Karras'; allowed: Automatic"),
            (
                {"override_settings": {"sd_model_checkpoint": "v1-5-pruned-emaonly.safetensors [6ce0161689]"}},
                404,
                "model",
            ),
        ]
        for fields, status, words in wrong:
            assert words in refused(ask(address, "txt2img", {"prompt": "a cat", **fields}), status)["detail"]
        right = {"prompt": "a cat", "sampler_name": "Euler", "scheduler": "Automatic"}
        assert json.loads(ask(address, "txt2img", right).json()["info"])["sampler_name"] == "Euler"
