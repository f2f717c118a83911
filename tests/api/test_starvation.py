"""ThreadPool that anyone can keep busy are not those that keys and jobs are read in."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from sd35.access.keys import Role, new_key
from sd35.api import app
from sd35.api.dialects.automatic1111.png_info import MAX_PARSED_IMAGES
from sd35.generation.model_pool import ModelPool
from sd35.images.png import write_png
from sd35.threads import PARSING, STORES, ThreadPool
from tests.support.fake_backend import WAIT_S, key_store
from tests.support.serving import listening, serving

_MORE_THAN_THERE_ARE = 100


@contextmanager
def busy(client: TestClient, threads: ThreadPool | None) -> Iterator[None]:
    """A pool of the server's is occupied: the event loop's default one, or another."""
    release, until_s = threading.Event(), time.monotonic() + WAIT_S

    def wait() -> bool:
        """Whether it was released, and did not end by itself so that a test that fails ends too."""
        return release.wait(max(0.0, until_s - time.monotonic()))

    async def occupy() -> list[asyncio.Future[bool]]:
        loop = asyncio.get_running_loop()
        if threads is None:
            return [loop.run_in_executor(None, wait) for _ in range(_MORE_THAN_THERE_ARE)]
        return [asyncio.ensure_future(threads.run(wait)) for _ in range(_MORE_THAN_THERE_ARE)]

    async def end(waiting: list[asyncio.Future[bool]]) -> list[bool]:
        return await asyncio.gather(*waiting)

    assert client.portal
    waiting = client.portal.call(occupy)
    try:
        yield
    finally:
        release.set()
        were_busy = client.portal.call(end, waiting)
    assert all(were_busy), "something waited until they were not"


@pytest.mark.parametrize("threads", [None, PARSING], ids=["default", "parsing"])
def test_keys_and_jobs_are_read_while_other_threads_are_busy(pool: ModelPool, threads: ThreadPool | None):
    """Gradio serves parts of files on the default ones, without a key; large bodies are parsed on the others."""
    key, secret = new_key("me", Role.USER, 0)
    with serving(pool, key_store(key)) as client, busy(client, threads):
        client.headers["authorization"] = f"Bearer {secret}"
        job = client.post("/v1/jobs", json={"prompt": "a cat"})
        assert job.status_code == 202
        for path in ("/v1/models", "/v1/jobs", job.headers["location"], "/metrics"):
            assert client.get(path).status_code == 200, path


def test_forms_are_parsed_while_stores_are_busy(pool: ModelPool):
    """Neither holds up the other: without keys in a store, a wrong form is refused at once."""
    with serving(pool) as client, busy(client, STORES):
        response = client.post("/v2beta/stable-image/generate/sd3", files={"prompt": (None, "")})
        assert response.status_code == 400


def test_stalled_uploads_do_not_block_other_uploads(pool: ModelPool):
    """Bodies that have begun and do not go on take no turn of those whose images are read."""
    body = json.dumps({"image": base64.b64encode(write_png(np.zeros((16, 16, 3), np.uint8), {})).decode()})
    begun = (
        b"POST /sdapi/v1/png-info HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b'content-length: 1000\r\n\r\n{"image":"'
    )
    with listening(pool, body_timeout_s=10 * WAIT_S) as (host, port), ExitStack() as senders:
        for _ in range(2 * MAX_PARSED_IMAGES):
            senders.enter_context(socket.create_connection((host, port))).sendall(begun)
        headers = {"content-type": "application/json"}
        url = f"http://{host}:{port}/sdapi/v1/png-info"
        # The server reads connections in the order in which they came, so those above have begun.
        for _ in range(2):
            assert httpx.post(url, content=body, headers=headers, timeout=WAIT_S).status_code == 200


def test_the_images_that_one_caller_sends_at_once_are_limited(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    """Beyond that, an image is refused with the limit, and is not charged for."""
    monkeypatch.setattr(app, "MAX_RECEIVED_BYTES_EACH", 1000)
    with serving(pool, requests_per_minute=1) as client:
        response = client.post("/sdapi/v1/png-info", json={"image": "a" * 1000})
        assert response.status_code == 429
        assert "too many images are being received" in response.json()["detail"]
        assert response.headers["retry-after"] == "1"
        assert client.post("/sdapi/v1/png-info", json={"image": "a"}).status_code == 422
