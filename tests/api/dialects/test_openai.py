"""OpenAI's dialect, with OpenAI's Python client."""

import asyncio
import base64
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from sd35.access.keys import Role, new_key
from sd35.backends.base import DenoiseRow
from sd35.content_filter import AllowAll, Decision
from sd35.errors import StoreUnavailable
from sd35.generation.model_pool import ModelPool
from sd35.images.record import REQUEST_KEY
from sd35.storage.blobs.memory import MemoryBlobStore
from sd35.storage.images import ImageStore
from sd35.storage.storage import Storage
from sd35.tensors import Array
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault, fake_pool, key_store
from tests.support.services import memory_storage
from tests.support.serving import cancellations, listening, serving

CAT: dict[str, Any] = {"prompt": "a cat", "extra_body": {"seed": 7}}


class WordFilter(AllowAll):
    """A content filter that refuses "evil" and blurs "nude"."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Decision:  # noqa: ARG002
        """Decide by a word of the prompt."""
        return Decision.REFUSE if "evil" in prompt else Decision.BLUR if "nude" in prompt else Decision.ALLOW


class PausingBackend(FakeBackend):
    """A backend that waits for `release` in the third step, and counts the images that it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.release.clear()
        self.is_paused = threading.Event()
        self.decoded = 0

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Array]:
        """Return the velocity of each row."""
        velocities = super().predict_velocity(rows)
        if len(self.rows) == 3:
            self.is_paused.set()
            assert self.release.wait(3 * WAIT_S)
        return velocities

    def decode_latents(self, latents: Sequence[Array]) -> list[Array]:
        """Count the latents and decode them."""
        self.decoded += len(latents)
        return super().decode_latents(latents)


def unclosable(storage: Storage) -> Any:
    """Return the storage without its `close`, so that several services can use it."""
    return SimpleNamespace(**storage._asdict(), close=lambda: None)


@pytest.fixture
def server(pool: ModelPool, backend: FakeBackend) -> Iterator[str]:
    """The base URL of the API of a real server."""
    with listening(pool, content_filter=f"{__name__}:WordFilter") as (host, port):
        yield f"http://{host}:{port}/v1"
        backend.release.set()


@pytest.fixture
def client(server: str) -> Iterator[OpenAI]:
    """OpenAI's client without retries."""
    with client_of(server) as client:
        yield client


def client_of(server: str, key: str = "sk-any") -> OpenAI:
    """Return OpenAI's client without retries."""
    return OpenAI(base_url=server, api_key=key, max_retries=0, timeout=WAIT_S)


def open_image(content: str | None) -> Image.Image:
    """Open an image in base64."""
    assert content
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        image.load()
    return image


def test_an_image_is_returned_as_base64(client: OpenAI):
    answer = client.images.generate(model="gpt-image-1", **CAT)
    (data,) = answer.data or []
    image = open_image(data.b64_json)
    assert (image.format, image.size) == ("PNG", (128, 128))
    assert REQUEST_KEY in image.info
    assert (answer.size, answer.quality, answer.output_format, answer.background) == (
        "128x128",
        "medium",
        "png",
        "opaque",
    )
    assert answer.model_extra == {"model": "mini"}
    assert answer.usage
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (2, 64, 66)
    assert (data.model_extra or {})["seed"] == 7


def test_dall_e_models_return_a_url(client: OpenAI):
    """The link needs no key, and gives the requested format."""
    answer = client.images.generate(model="dall-e-3", output_format="webp", **CAT)
    (data,) = answer.data or []
    assert data.url
    assert data.b64_json is None
    with Image.open(io.BytesIO(httpx2.get(data.url).content)) as image:
        assert image.format == "WEBP"


def test_several_images_have_consecutive_seeds(client: OpenAI):
    answer = client.images.generate(n=3, **CAT)
    assert [(data.model_extra or {})["seed"] for data in answer.data or []] == [7, 8, 9]
    assert len({data.b64_json for data in answer.data or []}) == 3


def test_fields_reach_the_image(client: OpenAI):
    def digest(extra: dict[str, Any] | None = None, **more: Any) -> str:
        answer = client.images.generate(prompt="a cat", extra_body={"seed": 7, **(extra or {})}, **more)
        (data,) = answer.data or []
        return str((data.model_extra or {})["digest"])

    digests = [
        digest(),
        digest({"negative_prompt": "a dog"}),
        digest({"num_inference_steps": 3}),
        digest({"guidance_scale": 7}),
        digest({"seed": 8}),
        digest(quality="low"),
        digest(quality="hd"),
        digest(size="64x128"),
        digest(model="large"),
    ]
    assert len(set(digests)) == len(digests)
    same = [
        digest(user="me", moderation="low", background="opaque", quality="auto", size="auto", style="vivid"),
        digest({"num_inference_steps": 4}),
    ]
    assert set(same) == {digests[0]}
    (data,) = client.images.generate(**CAT).data or []
    assert (data.model_extra or {})["cached"] is True


def test_compression_sets_the_quality_of_the_file(client: OpenAI):
    sizes = [
        len(
            (client.images.generate(output_format="jpeg", output_compression=quality, **CAT).data or [])[0].b64_json
            or ""
        )
        for quality in (0, 50, 100)
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"size": "100x100"}, "size", "invalid_value"),
        ({"size": "big"}, "size", "invalid_value"),
        ({"size": "nothing"}, "size", "invalid_value"),
        ({"style": "vague"}, "style", "invalid_value"),
        ({"background": "transparent"}, "background", "invalid_value"),
        ({"output_compression": 50}, "output_compression", "invalid_value"),
        (
            {"response_format": "url", "output_format": "jpeg", "output_compression": 5},
            "output_compression",
            "invalid_value",
        ),
        ({"quality": "hd", "extra_body": {"num_inference_steps": 5}}, "quality", "invalid_value"),
        ({"stream": True, "n": 2}, "n", "invalid_value"),
        ({"partial_images": 2}, "partial_images", "invalid_value"),
        ({"extra_body": {"steps": 5}}, "steps", "unknown_parameter"),
    ],
)
def test_an_invalid_field_is_a_bad_request_that_names_it(client: OpenAI, fields: dict[str, Any], param: str, code: str):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(**{"prompt": "a cat", **fields})
    assert (refused.value.param, refused.value.code, refused.value.type) == (param, code, "invalid_request_error")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("1x1", "size: got a width of 1; allowed: positive multiples of 16"),
        ("128x100", "size: got a height of 100; allowed: positive multiples of 16"),
    ],
)
def test_the_error_of_a_size_names_the_field_and_the_side(client: OpenAI, size: str, message: str):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a cat", size=size)
    assert refused.value.param == "size"
    assert message in str(refused.value)


def test_the_error_of_a_missing_prompt_names_it(client: OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/images/generations", body={}, cast_to=object)
    assert (refused.value.param, refused.value.code) == ("prompt", "missing_required_parameter")


def test_other_errors_have_openais_format(server: str, client: OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="evil")
    assert (refused.value.code, refused.value.type) == ("moderation_blocked", "image_generation_user_error")
    error = httpx2.post(f"{server}/images/edits", json={}).json()["error"]
    assert "/docs lists all routes" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_an_invalid_value(client: OpenAI, stream: bool):  # noqa: FBT001  a parameter of the test
    """OpenAI's image route responds with 400 too. Clients take a 404 for a missing route."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="dall-e-9", stream=stream, **CAT)
    error = refused.value
    assert (error.param, error.code, error.type) == ("model", "invalid_value", "invalid_request_error")


def test_nextcloud_finds_image_generation(server: str):
    """Its probe requests an invalid model. It takes only a 404 for a server without images."""
    answer = httpx2.post(f"{server}/images/generations", json={"prompt": "a", "model": "invalid-model"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert "mini, large" in answer.json()["error"]["message"]


def test_getting_an_unknown_model_is_404(client: OpenAI):
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-9")


def test_a_blurred_image_is_marked_in_the_response(client: OpenAI):
    (data,) = client.images.generate(prompt="nude").data or []
    assert (data.model_extra or {})["content_filtered"] is True


def test_models_are_listed_and_found(client: OpenAI):
    assert [model.id for model in client.models.list()] == ["mini", "large"]
    assert [client.models.retrieve(name).id for name in ("large", "dall-e-3")] == ["large", "mini"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-9")


def test_a_stream_has_previews_and_the_final_image(client: OpenAI):
    client.images.generate(prompt="a dog")  # previews are fitted to finished images, so one must exist
    with closing(client.images.generate(stream=True, partial_images=3, output_format="webp", **CAT)) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [getattr(event, "partial_image_index", None) for event in events] == [0, 1, 2, None]
    assert {open_image(event.b64_json).size for event in events} == {(128, 128)}
    assert {open_image(event.b64_json).format for event in events} == {"WEBP"}
    assert len({event.b64_json for event in events}) == 4
    whole = client.images.generate(output_format="webp", **CAT)
    assert (whole.data or [])[0].b64_json == events[-1].b64_json


def test_a_cached_image_is_streamed_without_previews(client: OpenAI):
    client.images.generate(**CAT)
    with closing(client.images.generate(stream=True, partial_images=3, **CAT)) as stream:
        assert [event.type for event in stream] == ["image_generation.completed"]


def test_the_async_client_works_and_streams(server: str):
    async def generate_both() -> tuple[str | None, str | None]:
        async with AsyncOpenAI(base_url=server, api_key="sk-any", max_retries=0, timeout=WAIT_S) as client:
            answer = await client.images.generate(**CAT)
            last = ""
            async for event in await client.images.generate(stream=True, partial_images=1, **CAT):
                last = event.b64_json
            return (answer.data or [])[0].b64_json, last

    whole, last = asyncio.run(generate_both())
    assert whole == last


def test_an_error_in_a_stream_is_a_status_before_the_first_event_and_an_event_after_it(
    client: OpenAI, backend: FakeBackend
):
    backend.faults["a dog"] = Fault.STEP_ERROR
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="evil", stream=True)
    with pytest.raises(openai.InternalServerError, match="the runtime"):
        list(client.images.generate(prompt="a dog", stream=True))
    with (
        closing(
            client.images.generate(prompt="a dog", stream=True, partial_images=3, extra_body={"seed": 1})
        ) as stream,
        pytest.raises(openai.APIError, match="the runtime"),
    ):
        list(stream)


def test_an_error_in_a_stream_is_counted_and_logged(server: str, client: OpenAI, backend: FakeBackend, capsys: Any):
    backend.faults["a dog"] = Fault.STEP_ERROR
    counted = 'sd35_errors_total{error="GenerationFailed"}'

    def metrics() -> str:
        return httpx2.get(server.replace("/v1", "/metrics")).text

    assert f"{counted} 1.0" not in metrics()
    with closing(client.images.generate(prompt="a dog", stream=True, partial_images=3)) as stream:
        assert next(stream).type == "image_generation.partial_image"
        with pytest.raises(openai.APIError, match="the runtime") as failed:
            list(stream)
    assert failed.value.type == "server_error"
    assert f"{counted} 1.0" in metrics()
    assert "image failed" in capsys.readouterr().out


@pytest.mark.parametrize("partial_images", [0, 1])
def test_the_engine_makes_previews_only_for_streams_that_send_some(tmp_path: Path, partial_images: int):
    with (
        fake_pool(tmp_path) as pool,
        listening(pool) as (host, port),
        client_of(f"http://{host}:{port}/v1") as client,
        patch.object(pool.engine, "submit", wraps=pool.engine.submit) as submit,
    ):
        list(client.images.generate(prompt="a dog", stream=True, partial_images=partial_images))
    assert submit.call_args.kwargs["previews"] == bool(partial_images)


def test_a_retried_image_sends_each_preview_once(tmp_path: Path):
    failing = FakeBackend("float16", {"a dog": Fault.UNIFORM})
    with (
        fake_pool(tmp_path, failing, fallback=FakeBackend()) as pool,
        listening(pool) as (host, port),
        client_of(f"http://{host}:{port}/v1") as client,
    ):
        events = list(client.images.generate(prompt="a dog", stream=True, partial_images=3))
    assert [getattr(event, "partial_image_index", None) for event in events] == [0, 1, 2, None]


def test_a_client_that_disconnects_after_a_preview_cancels_the_image(tmp_path: Path):
    backend = PausingBackend()
    with fake_pool(tmp_path, backend) as pool:
        cancelled = cancellations(pool)
        with listening(pool) as (host, port), client_of(f"http://{host}:{port}/v1") as client:
            with closing(client.images.generate(stream=True, partial_images=1, **CAT)) as stream:
                assert next(stream).type == "image_generation.partial_image"
                assert backend.is_paused.wait(WAIT_S)
            assert cancelled.wait(WAIT_S)
            backend.release.set()
            client.images.generate(prompt="a dog")
    assert (backend.steps.count("a cat"), backend.decoded) == (3, 1)


def test_a_client_that_disconnects_before_the_first_event_cancels_the_image(
    client: OpenAI, pool: ModelPool, backend: FakeBackend
):
    backend.hold()
    cancelled = cancellations(pool)
    with pytest.raises(openai.APITimeoutError):
        client.images.generate(prompt="a tree", stream=True, timeout=httpx2.Timeout(WAIT_S, read=0.2))
    assert cancelled.wait(WAIT_S)
    backend.release.set()
    client.images.generate(**CAT)
    assert backend.steps.count("a tree") <= 1


def test_an_idempotency_key_gives_the_same_images(client: OpenAI):
    again = {"Idempotency-Key": "order-1"}
    first, second = (client.images.generate(prompt="a cat", n=2, extra_headers=again) for _ in range(2))
    assert [data.b64_json for data in first.data or []] == [data.b64_json for data in second.data or []]
    with pytest.raises(openai.ConflictError):
        client.images.generate(prompt="a dog", n=2, extra_headers=again)
    with pytest.raises(openai.BadRequestError, match="idempotency-key"):
        client.images.generate(prompt="a dog", stream=True, extra_headers=again)


def test_a_filtered_request_with_an_idempotency_key_is_a_bad_request(client: OpenAI):
    for _ in range(2):
        with pytest.raises(openai.BadRequestError, match="content filter"):
            client.images.generate(prompt="evil", extra_headers={"Idempotency-Key": "order-2"})


def test_an_image_of_a_profile_no_longer_served_is_returned_without_usage(tmp_path: Path):
    responses = []
    storage = unclosable(memory_storage())
    for precision in ("float32", "float16"):
        pool = fake_pool(tmp_path, FakeBackend(precision))
        with serving(pool, storage=storage) as client:
            answer = client.post(
                "/v1/images/generations", json={"prompt": "a cat"}, headers={"Idempotency-Key": "order-3"}
            )
        assert answer.status_code == 200
        responses.append(answer.json())
    assert responses[0]["data"][0]["b64_json"] == responses[1]["data"][0]["b64_json"]
    assert ["usage" in each for each in responses] == [True, False]


def test_an_image_that_could_not_be_stored_has_no_url(pool: ModelPool):
    class Full(MemoryBlobStore):
        def put(self, name: str, content: bytes) -> bool:  # noqa: ARG002
            raise StoreUnavailable("the disk is full")

    storage = memory_storage()
    storage = storage._replace(images=ImageStore(Full(), storage.database.ownership))
    with serving(pool, storage=storage) as client:
        with_url, with_file = (
            client.post("/v1/images/generations", json={"prompt": "a cat", "response_format": each})
            for each in ("url", "b64_json")
        )
    assert (with_url.status_code, with_url.json()["error"]["type"]) == (503, "server_error")
    assert "the disk is full" in with_url.json()["error"]["message"]
    assert (with_file.status_code, with_file.headers["x-sd35-stored"]) == (200, "false")


def test_keys_rate_limits_and_metrics_work_in_this_dialect(pool: ModelPool):
    key, secret = new_key("someone", Role.USER, 0.0)
    with listening(pool, keys=key_store(key), pixels_per_hour=3 * 128 * 128) as (host, port):
        server = f"http://{host}:{port}/v1"
        with pytest.raises(openai.AuthenticationError) as unknown, client_of(server) as client:
            client.images.generate(**CAT)
        assert (unknown.value.code, unknown.value.type) == ("invalid_api_key", "authentication_error")
        with client_of(server, secret) as client:
            client.images.generate(n=2, **CAT)
            with pytest.raises(openai.RateLimitError) as limited:
                client.images.generate(n=2, **CAT)
            with pytest.raises(openai.PermissionDeniedError):
                client.images.generate(n=4, **CAT)
        assert (limited.value.code, limited.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        assert int(limited.value.response.headers["retry-after"]) > 0
        metrics = httpx2.get(server.replace("/v1", "/metrics"), headers={"x-api-key": secret}).text
    assert (
        'sd35_http_requests_total{dialect="openai",method="POST",route="/v1/images/generations",status="200"} 1.0'
        in metrics
    )


def test_a_strict_service_refuses_openais_model_names(pool: ModelPool):
    with listening(pool, strict_dialects=True) as (host, port), client_of(f"http://{host}:{port}/v1") as client:
        with pytest.raises(openai.BadRequestError, match="model: got 'dall-e-3'; allowed: "):
            client.images.generate(model="dall-e-3", **CAT)
        with pytest.raises(openai.BadRequestError, match="style"):
            client.images.generate(style="vivid", **CAT)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("dall-e-3")
