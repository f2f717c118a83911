"""Stability's dialect, with requests to a real server as in Stability's samples: with `requests`, and with curl."""

import base64
import io
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from sd35.access.keys import KeyStore, Role, new_key
from sd35.api.dialects.stability import Form
from sd35.api.form import MAX_FORM_BYTES, MAX_PARTS
from sd35.content_filter import AllowAll, Decision
from sd35.errors import NotAcceptable
from sd35.generation.model_pool import ModelPool
from sd35.images.formats import Format
from sd35.images.texts import read_record
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault, fake_pool, key_store
from tests.support.serving import listening, serving

PATH = "/v2beta/stable-image/generate/sd3"
CAT: dict[str, Any] = {"prompt": "a cat", "seed": 7}
EMPTY = {"none": ""}
BOUNDARY = {"content-type": "multipart/form-data; boundary=x"}


class WordFilter(AllowAll):
    """A content filter that refuses "evil" and blurs "nude"."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Decide by a word of the prompt."""
        return Decision.REFUSE if "evil" in prompt else Decision.BLUR if "nude" in prompt else Decision.ALLOW


@contextmanager
def at(pool: ModelPool, keys: KeyStore | None = None, **settings: Any) -> Iterator[str]:
    """Yield the base URL of a real server."""
    with listening(pool, keys, **settings) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def server(pool: ModelPool, backend: FakeBackend) -> Iterator[str]:
    """The base URL of a real server."""
    with at(pool) as server:
        yield server
        backend.release.set()


def post_form(server: str, accept: str = "image/*", files: Any = EMPTY, key: str = "sk-MYAPIKEY", **more: Any) -> Any:
    """Send a form as Stability's Python sample does: an empty file makes `requests` send multipart."""
    headers = {"authorization": f"Bearer {key}", "accept": accept, **more.pop("headers", {})}
    return requests.post(f"{server}{PATH}", headers=headers, files=files, data=more, timeout=WAIT_S)


def error_text(response: Any, status: int, name: str) -> str:
    """Return the text of an error, after checking its status and format."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), response.text
    content = response.json()
    assert set(content) == {"id", "name", "errors"}
    assert (content["id"], content["name"]) == (response.headers["x-request-id"], name)
    return "\n".join(content["errors"])


def part(name: str, content: bytes = b"", more: bytes = b"") -> bytes:
    """Return a part of a form, with the boundary before it."""
    return b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), more, content)


def size_of(file: bytes) -> tuple[int, int]:
    """Return the width and height of an image."""
    with Image.open(io.BytesIO(file)) as image:
        return image.size


def test_stabilitys_python_sample_gets_a_file(server: str, tmp_path: Path):
    response = post_form(server, prompt="Lighthouse on a cliff overlooking the ocean", output_format="jpeg")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/jpeg")
    assert response.headers["finish-reason"] == "SUCCESS"
    file = tmp_path / "lighthouse.jpeg"
    file.write_bytes(response.content)
    request = read_record(file.read_bytes()).request
    assert (request.prompt, request.width, request.height) == ("Lighthouse on a cliff overlooking the ocean", 128, 128)
    assert response.headers["seed"] == response.headers["x-sd35-seed"] == str(request.seed)
    assert (response.headers["x-sd35-model"], response.headers["x-sd35-digest"]) == ("mini", request.digest)


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_stabilitys_curl_sample_gets_a_file(server: str, tmp_path: Path):
    fields = ("prompt=Lighthouse on a cliff overlooking the ocean", "output_format=webp", "aspect_ratio=16:9")
    headers = ("-H", "authorization: Bearer sk-MYAPIKEY", "-H", "accept: image/*")
    forms = [each for field in fields for each in ("-F", field)]
    command = ["curl", "-sS", "--fail-with-body", f"{server}{PATH}", *headers, *forms, "-o", "./lighthouse.webp"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=WAIT_S)
    with Image.open(tmp_path / "lighthouse.webp") as image:
        assert (image.format, image.size) == ("WEBP", (160, 96))


def test_json_contains_the_same_file(server: str):
    file = post_form(server, **CAT)
    response = post_form(server, "application/json", **CAT)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    content = response.json()
    assert base64.b64decode(content.pop("image")) == file.content
    digest = file.headers["x-sd35-digest"]
    assert content == {"finish_reason": "SUCCESS", "seed": 7, "model": "mini", "digest": digest}
    assert (response.headers["finish-reason"], response.headers["seed"]) == ("SUCCESS", "7")


def test_every_field_reaches_the_request(server: str):
    fields: dict[str, Any] = {
        "prompt": "ein Übergrößenträger 🐈",
        "negative_prompt": "a dog",
        "seed": 4294967294,
        "model": "large",
    }
    response = post_form(server, **fields, cfg_scale=6.5, aspect_ratio="2:3", mode="text-to-image", output_format="png")
    request = read_record(response.content).request
    assert {name: getattr(request, name) for name in fields} == fields
    assert (request.guidance_scale, request.width, request.height) == (6.5, 832, 1216)
    assert (request.steps, request.skip_layer_scale) == (30, 2.8)  # the model's defaults
    assert size_of(response.content) == (832, 1216)


def test_omitted_fields_have_the_models_defaults(server: str):
    request = read_record(post_form(server, prompt="a cat").content).request
    assert (request.guidance_scale, request.steps, request.negative_prompt) == (4.5, 4, "")
    assert (request.width, request.height) == (128, 128)


def test_a_seed_of_0_is_random(server: str):
    first, second = (post_form(server, prompt="a cat", seed=0) for _ in range(2))
    assert len({first.headers["seed"], second.headers["seed"], "0"}) == 3
    again = post_form(server, prompt="a cat", seed=first.headers["seed"])
    assert (again.content, again.headers["x-sd35-cache"]) == (first.content, "hit")


def test_an_image_is_a_cache_hit_in_other_dialects(server: str):
    own: dict[str, Any] = {"prompt": "a cat", "seed": 7, "width": 160, "height": 96}
    first = requests.post(f"{server}/v1/txt2img", json=own, timeout=WAIT_S)
    second = post_form(server, **CAT, aspect_ratio="16:9")
    assert second.headers["x-sd35-cache"] == "hit"
    assert second.content == first.content


@pytest.mark.parametrize("name", ["sd3.5-large", "sd3.5-large-turbo", "sd3.5-medium", "sd3.5-flash"])
def test_stabilitys_model_names_are_aliases_of_served_models(server: str, name: str):
    assert post_form(server, **CAT, model=name).headers["x-sd35-model"] == "mini"


def test_a_strict_service_refuses_stabilitys_model_names(pool: ModelPool):
    with at(pool, strict_dialects=True) as server:
        message = error_text(post_form(server, **CAT, model="sd3.5-large"), 400, "bad_request")
        assert message == "model: got 'sd3.5-large'; allowed: mini, large"
        assert post_form(server, **CAT, model="mini").status_code == 200


FILE = b"\x89PNG and so on"
INVALID = [
    ({"prompt": None}, "prompt: got 'nothing'; allowed: text of 1 to 10000 characters"),
    ({"prompt": ""}, "prompt: got ''; allowed: text of 1 to 10000 characters"),
    ({"prompt": "x" * 10_001}, "prompt: got 'x"),
    ({"negative_prompt": "x" * 10_001}, "negative_prompt: got 'x"),
    ({"mode": "image-to-image"}, "mode: got 'image-to-image'; allowed: text-to-image, because this server generates"),
    ({"strength": "0.5"}, "strength: got '0.5'; allowed: no value, because this server generates"),
    ({"style_preset": "anime"}, "style_preset: got 'anime'; allowed: no value; describe the style in the prompt"),
    ({"aspect_ratio": "7:5"}, "aspect_ratio: got '7:5'; allowed: one of 16:9, 1:1, 21:9"),
    ({"model": "sd9"}, "model: got 'sd9'; allowed: mini, large"),
    ({"model": ""}, "model: got ''; allowed: a name from /v1/models"),
    ({"seed": "-1"}, "seed: got '-1'; allowed: an integer from 0 to 4294967294"),
    ({"seed": "4294967295"}, "seed: got '4294967295'; allowed: an integer from 0 to 4294967294"),
    ({"seed": "1_0"}, "seed: got '1_0'"),
    ({"seed": " 7"}, "seed: got ' 7'"),
    ({"seed": "7.0"}, "seed: got '7.0'"),
    ({"seed": "9" * 5000}, "seed: got '999"),
    ({"seed": ""}, "seed: got ''"),
    ({"cfg_scale": "0.9"}, "cfg_scale: got '0.9'; allowed: a number from 1 to 10"),
    ({"cfg_scale": "10.1"}, "cfg_scale: got '10.1'"),
    ({"cfg_scale": "nan"}, "cfg_scale: got 'nan'"),
    ({"cfg_scale": "1_0"}, "cfg_scale: got '1_0'"),
    ({"output_format": "gif"}, "output_format: got 'gif'; allowed: png, jpeg, webp or avif"),
    ({"steps": "4"}, "steps: got '4'; allowed: only known fields (prompt, negative_prompt, aspect_ratio, model, s"),
    ({"image": (None, "text")}, "image: got 'text'; allowed: no value, because this server generates"),
    ({"image": ("a.png", FILE)}, "image: got 'a file of 14 bytes'; allowed: no value, because this server generates"),
    ({"prompt": ("a.txt", FILE)}, "prompt: got 'a file of 14 bytes'; allowed: text of"),
    ({"none": ("none", FILE)}, "none: got 'a file of 14 bytes'; allowed: only known fields (prompt"),
    ({"prompt": (None, b"a \xff")}, "prompt: got 'a \ufffd'; allowed: text in UTF-8"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID, ids=range(len(INVALID)))
def test_the_error_of_an_invalid_field_names_it(server: str, fields: dict[str, Any], message: str):
    files = {name: value for name, value in fields.items() if isinstance(value, tuple)}
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    prompt = {} if "prompt" in fields else {"prompt": "a cat"}
    assert message in error_text(post_form(server, files=files or EMPTY, **{**prompt, **texts}), 400, "bad_request")


def test_all_invalid_fields_are_named_at_once(server: str):
    lines = error_text(post_form(server, seed="x", cfg_scale="y", foo="z"), 400, "bad_request").splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["cfg_scale", "foo", "prompt", "seed"]
    assert not any("style_preset" in line for line in lines)


@pytest.mark.parametrize(
    "files",
    [EMPTY, {"image": ""}, {"none": ("", "")}, [("a", ("", "")), ("a", ("", "")), ("prompt", ("", ""))]],
    ids=["their sample's", "no image", "a browser's", "several of one name"],
)
def test_an_empty_file_is_ignored(server: str, files: Any):
    """Clients add empty files to send a form."""
    assert post_form(server, files=files, **CAT).status_code == 200


def test_text_may_be_in_parts_with_a_content_type(server: str):
    files = {name: (None, str(value), "text/plain; charset=utf-8") for name, value in CAT.items()}
    assert requests.post(f"{server}{PATH}", files=files, timeout=WAIT_S).headers["seed"] == "7"


ENCODED = b"\r\nContent-Transfer-Encoding: base64"
BODIES = [
    (part("prompt", b"a") + part("prompt", b"b") + b"--x--\r\n", "prompt: got 'two values'; allowed: one value"),
    (part("prompt", b"a") + part("seed", b"7"), "it ends before its last boundary"),
    (part("prompt", b"a") + b"--x", "it ends before its last boundary"),
    (part("prompt", b"a").replace(b"--x", b"--y"), "the body is not valid multipart/form-data"),
    (b"prompt=a", "the body is not valid multipart/form-data"),
    (b"", "it ends before its last boundary"),
    (b"--x--\r\n", "prompt: got 'nothing'"),
    (b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n", "a part has no name"),
    (b"--x\r\n\r\na\r\n--x--\r\n", "a part has no name"),
    (part("prompt", b"YQ==", ENCODED) + b"--x--\r\n", "got 'content-transfer-encoding base64'; allowed: text in UTF-8"),
    (b"".join(part(str(n)) for n in range(MAX_PARTS + 1)) + b"--x--\r\n", "too many parts; allowed: 50"),
    (b"--x\r\n" + b"a: b\r\n" * 100 + part("prompt")[5:] + b"--x--\r\n", "Maximum header count"),
    (b"--x\r\na: " + b"b" * 10_000 + b"\r\n" + part("prompt")[5:] + b"--x--\r\n", "Maximum header size"),
]


@pytest.mark.parametrize(("body", "message"), BODIES, ids=range(len(BODIES)))
def test_a_body_that_is_not_a_form_is_refused(server: str, body: bytes, message: str):
    response = requests.post(f"{server}{PATH}", data=body, headers=BOUNDARY, timeout=WAIT_S)
    assert message in error_text(response, 400, "bad_request")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "content-type: got ''; allowed: multipart/form-data"),
        ({"content-type": "application/json"}, "content-type: got 'application/json'; allowed: multipart/form-data"),
        ({"content-type": "application/x-www-form-urlencoded"}, "content-type: got"),
        ({"content-type": "multipart/form-data"}, "has no boundary"),
        ({"content-type": f"multipart/form-data; boundary={'x' * 1000}"}, "Boundary length 1000 exceeds"),
        ({**BOUNDARY, "content-encoding": "gzip"}, "content-encoding: got 'gzip'"),
        ({**BOUNDARY, "idempotency-key": "a b"}, "Idempotency-Key: got 'a b'"),
    ],
)
def test_only_multipart_forms_are_read(server: str, headers: dict[str, str], message: str):
    body = part("prompt", b"a") + b"--x--\r\n"
    response = requests.post(f"{server}{PATH}", body, headers=headers, timeout=WAIT_S)
    assert message in error_text(response, 400, "bad_request")


def test_a_field_in_the_query_is_refused(server: str):
    response = requests.post(f"{server}{PATH}?seed=7", files=EMPTY, data=CAT, timeout=WAIT_S)
    assert "seed: got '7'" in error_text(response, 400, "bad_request")


def test_the_size_of_a_body_is_limited(server: str):
    large: dict[str, Any] = {"prompt": "a", "image": (None, "x" * MAX_FORM_BYTES)}
    message = "body: got None; allowed: at most 10485760 bytes"
    assert message in error_text(post_form(server, files=large), 413, "payload_too_large")
    chunks = (b" " * 65536 for _ in range(MAX_FORM_BYTES // 65536 + 1))
    response = requests.post(f"{server}{PATH}", data=chunks, headers=BOUNDARY, timeout=WAIT_S)
    assert message in error_text(response, 413, "payload_too_large")
    large = {"prompt": "a", "image": ("a.png", b"\r\n--" * ((MAX_FORM_BYTES - 1000) // 4))}
    assert "image: got 'a file of 10484760 bytes'" in error_text(post_form(server, files=large), 400, "bad_request")


@pytest.mark.parametrize(
    ("accept", "output_format", "expected"),
    [
        (None, None, (Format.PNG, False)),
        ("*/*", None, (Format.PNG, False)),
        ("image/*", "jpeg", (Format.JPEG, False)),
        ("image/webp", None, (Format.WEBP, False)),
        ("application/json", None, (Format.PNG, True)),
        ("application/json; type=image/png", None, (Format.PNG, True)),
        ("application/json", "webp", (Format.WEBP, True)),
        ("application/json, text/plain, */*", "jpeg", (Format.JPEG, True)),
        ("image/*, application/json", None, (Format.PNG, False)),
        ("image/*;q=0.5, application/json", None, (Format.PNG, True)),
        ("image/*, application/json;q=0.5", None, (Format.PNG, False)),
        ("*/*, application/json;q=0", None, (Format.PNG, False)),
        ("image/png", "jpeg", None),
        ("text/html", None, None),
        ("image/*;q=0", None, None),
    ],
)
def test_accept_selects_file_or_json(accept: str | None, output_format: Any, expected: tuple[Format, bool] | None):
    form = Form.model_validate({"prompt": "a cat", "output_format": output_format})
    if expected:
        assert form.choose_format(accept) == expected
    else:
        with pytest.raises(NotAcceptable):
            form.choose_format(accept)


def test_an_accept_that_allows_neither_is_refused(server: str):
    message = error_text(post_form(server, "text/html", output_format="jpeg", **CAT), 400, "bad_request")
    assert message == "accept: got 'text/html'; allowed: image/jpeg, application/json"


def test_filtered_images_are_reported_in_stabilitys_format(pool: ModelPool):
    with at(pool, content_filter="tests.api.dialects.test_stability:WordFilter") as server:
        file, in_json = post_form(server, prompt="nude"), post_form(server, "application/json", prompt="nude")
        assert (file.status_code, file.headers["finish-reason"]) == (200, "CONTENT_FILTERED")
        assert in_json.json()["finish_reason"] == "CONTENT_FILTERED"
        for headers in ({}, {"idempotency-key": "one"}):
            message = error_text(post_form(server, prompt="evil", headers=headers), 403, "content_moderation")
            assert "this service's content filter refuses the prompt; change the prompt" in message


def test_a_failed_image_is_an_error_in_stabilitys_format(server: str, backend: FakeBackend):
    backend.faults["a dog"] = Fault.STEP_ERROR
    assert "the runtime's own words" in error_text(post_form(server, prompt="a dog"), 500, "internal_error")


def test_an_idempotency_key_makes_one_image(server: str):
    headers = {"idempotency-key": "one"}
    first, again = (post_form(server, prompt="a cat", headers=headers) for _ in range(2))
    assert (first.headers["x-sd35-cache"], again.headers["x-sd35-cache"]) == ("miss", "hit")
    assert (first.content, first.headers["seed"]) == (again.content, again.headers["seed"])
    assert "'one' was used before" in error_text(post_form(server, prompt="a dog", headers=headers), 409, "conflict")


def test_headers_of_stabilitys_clients_change_nothing(server: str):
    headers = {f"stability-client-{name}": "me" for name in ("id", "user-id", "version")}
    assert post_form(server, headers=headers, **CAT).content == post_form(server, **CAT).content


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("POST", "/v2beta/stable-image/generate/ultra", 404, "not_found"),
        ("POST", f"{PATH}/", 404, "not_found"),
        ("GET", "/v2beta/", 404, "not_found"),
        ("GET", PATH, 405, "method_not_allowed"),
    ],
)
def test_the_error_of_an_unknown_path_names_the_route(server: str, method: str, path: str, status: int, name: str):
    response = requests.request(method, f"{server}{path}", timeout=WAIT_S)
    message = error_text(response, status, name)
    assert f"POST {PATH}" in message if status == 404 else response.headers["allow"] == "POST"


def test_keys_and_metrics_work_in_this_dialect(pool: ModelPool):
    key, secret = new_key("someone", Role.USER, 0.0)
    with at(pool, key_store(key)) as server:
        response = post_form(server, **CAT)
        assert error_text(response, 401, "unauthorized").startswith("the API key is not valid: ")
        assert response.headers["www-authenticate"] == "Bearer"
        assert post_form(server, key=secret, **CAT).status_code == 200
        metrics = requests.get(f"{server}/metrics", headers={"x-api-key": secret}, timeout=WAIT_S).text
    assert f'sd35_http_requests_total{{dialect="stability",method="POST",route="{PATH}",status="200"}} 1.0' in metrics


def test_rate_limits_work_in_this_dialect(pool: ModelPool, tmp_path: Path):
    with at(pool, requests_per_minute=1) as server:
        assert post_form(server, **CAT).status_code == 200
        response = post_form(server, **CAT)
        error_text(response, 429, "rate_limit_exceeded")
        assert int(response.headers["retry-after"]) >= 1
    with at(another_pool(tmp_path), pixels_per_hour=1000) as server:
        error_text(post_form(server, **CAT), 403, "forbidden")


def another_pool(directory: Path) -> ModelPool:
    """Return another pool, because a server closes its own."""
    return fake_pool(directory / "another")


def test_a_body_that_does_not_arrive_in_time_is_408(pool: ModelPool):
    with at(pool, body_timeout_s=0.1) as server:
        host, port = server.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
            connection.sendall(_head(100))
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"name": "request_timeout"' in answer


def test_a_disconnect_cancels_the_image(server: str, pool: ModelPool, backend: FakeBackend):
    cancelled = threading.Event()
    cancel = pool.engine.cancel

    def cancel_and_report(handle: Any) -> None:
        cancel(handle)
        cancelled.set()

    pool.engine.cancel = cancel_and_report  # type: ignore[method-assign]
    body = part("prompt", b"a tree") + b"--x--\r\n"
    backend.hold()
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
        connection.sendall(_head(len(body)) + body)
        assert backend.started.wait(WAIT_S)
    assert cancelled.wait(WAIT_S)
    backend.release.set()
    assert post_form(server, prompt="a dog").status_code == 200
    assert backend.steps == ["a tree"] + ["a dog"] * 4


def _head(length: int) -> bytes:
    lines = (f"POST {PATH} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {BOUNDARY['content-type']}")
    return "\r\n".join([*lines, f"Content-Length: {length}", "\r\n"]).encode()


@pytest.fixture(scope="module")
def module_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One client for all examples of a property."""
    with serving(fake_pool(tmp_path_factory.mktemp("models"))) as client:
        yield client


def test_openapi_describes_errors_in_stabilitys_format_only(module_client: TestClient):
    responses = module_client.get("/openapi.json").json()["paths"][PATH]["post"]["responses"]
    assert "422" not in responses
    errors = {status: each["content"]["application/json"]["schema"] for status, each in responses.items()}
    assert errors.pop("200")["title"] == "ImageResponse"
    assert {tuple(schema["properties"]) for schema in errors.values()} == {("id", "name", "errors")}


pieces = st.sampled_from(
    [
        b"--x\r\n",
        b"\r\n--x\r\n",
        b"\r\n--x--\r\n",
        b"\r\n",
        part("prompt", b"a"),
        part("seed", b"7"),
        b"--x--",
        b": ",
        b"-",
    ]
)


@given(st.lists(pieces | st.binary(max_size=5), max_size=12))
def test_no_bytes_cause_a_500(module_client: TestClient, sent: Sequence[bytes]):
    response = module_client.post(PATH, content=b"".join(sent), headers=BOUNDARY)
    if response.status_code != 200:
        assert error_text(response, 400, "bad_request")
