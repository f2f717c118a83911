"""Stability's dialect, by raw calls as their samples make them: `requests` with an empty file part, and curl's form."""

import base64
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sd35.checkpoints.checkpoint import Card
from sd35.service.keys import Role, new_key
from sd35.service.sizes import size_of_aspect
from sd35.service.studio import Studio
from tests.api.conftest import cancellations, listening
from tests.double import WAIT_S, NumpyBackend, key_store

PATH = "/v2beta/stable-image/generate/sd3"
CAT: dict[str, Any] = {"prompt": "a cat", "seed": 7}
RATIOS = ["16:9", "1:1", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21"]


@pytest.fixture
def server(studio: Studio, backend: NumpyBackend) -> Iterator[str]:
    """The base URL of a real server."""
    with listening(studio) as (host, port):
        yield f"http://{host}:{port}"
        backend.release.set()


def ask(server: str, accept: str = "image/*", key: str = "sk-any", **fields: Any) -> requests.Response:
    """As their Python sample does."""
    headers = {"authorization": f"Bearer {key}", "accept": accept}
    return requests.post(f"{server}{PATH}", headers=headers, files={"none": ""}, data=fields, timeout=WAIT_S)


def refused(response: requests.Response, status: int, name: str) -> str:
    """The words of an error of theirs."""
    assert response.status_code == status, response.text
    error = response.json()
    assert set(error) == {"id", "name", "errors"}
    assert error["name"] == name
    assert error["id"] == response.headers["x-request-id"]
    return "; ".join(error["errors"])


def test_their_sample_gets_a_picture(server: str):
    """Bytes of a PNG file, with the seed and why it ended in headers, of the default size."""
    response = ask(server, **CAT)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert (response.headers["finish-reason"], response.headers["seed"]) == ("SUCCESS", "7")
    assert response.headers["x-sd35-model"] == "mini"
    assert Image.open(io.BytesIO(response.content)).size == (128, 128)


def test_json_brings_the_same_picture(server: str):
    """In base64, with seed and reason."""
    picture = ask(server, **CAT)
    answer = ask(server, "application/json", **CAT).json()
    assert base64.b64decode(answer["image"]) == picture.content
    assert (answer["finish_reason"], answer["seed"], answer["model"]) == ("SUCCESS", 7, "mini")


def test_curl_gets_a_picture(server: str, tmp_path: Path):
    """`-F` for each field, as in their samples."""
    out = tmp_path / "out.jpeg"
    fields = ["prompt=a cat", "output_format=jpeg", "aspect_ratio=16:9", "model=sd3.5-large"]
    command = ["curl", "-sf", f"{server}{PATH}", "-H", "authorization: Bearer sk-x", "-H", "accept: image/*"]
    subprocess.run([*command, *(part for field in fields for part in ("-F", field)), "-o", out], check=True)
    with Image.open(out) as image:
        assert (image.format, image.size) == ("JPEG", (160, 96))


def test_a_seed_of_0_is_random(server: str):
    """Two calls are two pictures, and each names its seed."""
    seeds = {ask(server, prompt="a cat", seed=0).headers["seed"] for _ in range(2)}
    assert len(seeds) == 2
    assert "0" not in seeds


def test_fields_reach_the_picture(server: str):
    """Negative prompt and guidance change it; the same again is found."""
    digests = [
        ask(server, **CAT, **more).headers["x-sd35-digest"]
        for more in (
            {},
            {"negative_prompt": "a dog"},
            {"cfg_scale": "7.5"},
            {"aspect_ratio": "9:16"},
            {"model": "large"},
        )
    ]
    assert len(set(digests)) == len(digests)
    assert ask(server, **CAT).headers["x-sd35-cache"] == "hit"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "prompt: got 'nothing'; allowed: text of 1 to"),
        ({"prompt": ""}, "prompt: got ''"),
        ({**CAT, "mode": "image-to-image"}, "mode: got 'image-to-image'; allowed: text-to-image"),
        ({**CAT, "strength": "0.5"}, "strength: got '0.5'; allowed: left out"),
        ({**CAT, "style_preset": "anime"}, "style_preset: got 'anime'; allowed: left out"),
        ({**CAT, "aspect_ratio": "7:5"}, "aspect_ratio: got '7:5'; allowed: 16:9"),
        ({**CAT, "seed": "4294967295"}, "seed: got '4294967295'"),
        ({**CAT, "cfg_scale": "11"}, "cfg_scale: got '11'; allowed: a number from 1 to 10"),
        ({**CAT, "output_format": "gif"}, "output_format: got 'gif'"),
        ({**CAT, "model": "sd9"}, "model: got 'sd9'; allowed: mini, large"),
        ({**CAT, "steps": "4"}, "steps: got '4'; allowed: only prompt"),
    ],
)
def test_a_wrong_field_is_a_bad_request_that_names_it(server: str, fields: dict[str, Any], words: str):
    """With what came and what is allowed."""
    assert words in refused(ask(server, **fields), 400, "bad_request")


def test_files_with_content_are_refused(server: str):
    """Pictures are made from text alone."""
    response = requests.post(f"{server}{PATH}", files={"image": b"a picture"}, data=CAT, timeout=WAIT_S)
    assert "image: got '9 bytes'; allowed: no file" in refused(response, 400, "bad_request")


@pytest.mark.parametrize(
    ("media_type", "body", "status", "name"),
    [
        ("application/json", b'{"prompt": "a cat"}', 400, "bad_request"),
        ("multipart/form-data", b"--x\r\n", 400, "bad_request"),
        ("multipart/form-data; boundary=x", b"no part", 400, "bad_request"),
        ("multipart/form-data; boundary=x", b"x" * (10 * 1024 * 1024 + 1), 413, "payload_too_large"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\na\r\n' * 2 + b"--x--\r\n",
            400,
            "bad_request",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\na\r\n' * 60 + b"--x--\r\n",
            400,
            "bad_request",
        ),
    ],
    ids=["json", "no boundary", "no form", "too large", "given twice", "too many parts"],
)
def test_what_is_no_form_is_refused(server: str, media_type: str, body: bytes, status: int, name: str):
    """In their shape too."""
    headers = {"content-type": media_type, "expect": ""}
    refused(requests.post(f"{server}{PATH}", data=body, headers=headers, timeout=WAIT_S), status, name)


def test_an_accept_header_that_takes_nothing_is_refused(server: str):
    """With what there is."""
    assert "image/* or application/json" in refused(ask(server, "text/html", **CAT), 400, "bad_request")


def test_other_paths_of_theirs_are_not_there(server: str):
    """And say so in their shape."""
    response = requests.post(f"{server}/v2beta/stable-image/generate/core", data=CAT, timeout=WAIT_S)
    assert "what there is: /docs" in refused(response, 404, "not_found")


def test_keys_and_metrics_hold_here_too(studio: Studio):
    """A wrong key is their 401, the right one is let in, and requests count under the dialect's name."""
    key, secret = new_key("someone", Role.USER, 0.0)
    with listening(studio, keys=key_store(key)) as (host, port):
        server = f"http://{host}:{port}"
        refused(ask(server, **CAT), 401, "unauthorized")
        assert ask(server, key=secret, **CAT).status_code == 200
        metrics = requests.get(f"{server}/metrics", headers={"x-api-key": secret}, timeout=WAIT_S).text
    assert f'sd35_http_requests_total{{dialect="stability",method="POST",route="{PATH}",status="200"}} 1.0' in metrics


def test_limits_hold_here_too(studio: Studio):
    """A second request in a minute of one is their 429, with the time to wait."""
    with listening(studio, requests_per_minute=1) as (host, port):
        server = f"http://{host}:{port}"
        assert ask(server, **CAT).status_code == 200
        response = ask(server, **CAT)
    refused(response, 429, "rate_limit_exceeded")
    assert int(response.headers["retry-after"]) > 0


def test_strict_means_that_no_other_name_is_served(studio: Studio):
    """Their models are not here."""
    with listening(studio, strict_dialects=True) as (host, port):
        response = ask(f"http://{host}:{port}", **CAT, model="sd3.5-large")
    assert "sd3.5-large" in refused(response, 400, "bad_request")


def test_who_hangs_up_stops_the_picture(server: str, studio: Studio, backend: NumpyBackend):
    """Before its next step."""
    cancelled = cancellations(studio)
    with pytest.raises(requests.Timeout):  # which comes of a picture that is held
        requests.post(f"{server}{PATH}", data={"prompt": "held"}, files={"none": ""}, timeout=(WAIT_S, 0.2))
    assert cancelled.wait(WAIT_S)
    backend.release.set()
    assert ask(server, prompt="another").status_code == 200
    assert backend.steps.count("held") <= 1


@given(
    st.sampled_from([(128, 128), (512, 512), (1024, 1024), (1440, 1440)]),
    st.sampled_from(RATIOS),
)
def test_an_aspect_has_no_more_pixels_than_the_default_and_nearly_its_shape(default: tuple[int, int], ratio: str):
    """Sides are multiples of 16."""
    wide, high = map(int, ratio.split(":"))
    width, height = size_of_aspect(wide, high, Card(width=default[0], height=default[1]))
    assert width % 16 == height % 16 == 0
    assert 0.75 * default[0] * default[1] <= width * height <= default[0] * default[1]
    assert width / height == pytest.approx(wide / high, rel=0.13)


def test_the_aspects_of_a_megapixel_are_the_known_sizes():
    """Those that SDXL and SD3 were trained with."""
    aspects = [ratio.split(":") for ratio in RATIOS]
    sizes = [size_of_aspect(int(wide), int(high), Card()) for wide, high in aspects]
    assert sizes[:5] == [(1344, 768), (1024, 1024), (1536, 640), (832, 1216), (1216, 832)]
    assert sizes[5:] == [(896, 1088), (1088, 896), (768, 1344), (640, 1536)]
