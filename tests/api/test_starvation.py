"""Work that anyone can cause does not block the threads that read keys and jobs."""

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

_MORE_THAN_ALL_THREADS = 100


@contextmanager
def busy(client: TestClient, threads: ThreadPool | None) -> Iterator[None]:
    """Keep all threads of a pool busy: those of `threads`, or the event loop's default ones."""
    release, until_s = threading.Event(), time.monotonic() + WAIT_S

    def wait() -> bool:
        """Return whether the threads were released; False after a time, so that a failing test ends."""
        return release.wait(max(0.0, until_s - time.monotonic()))

    async def occupy() -> list[asyncio.Future[bool]]:
        loop = asyncio.get_running_loop()
        if threads is None:
            return [loop.run_in_executor(None, wait) for _ in range(_MORE_THAN_ALL_THREADS)]
        return [asyncio.ensure_future(threads.run(wait)) for _ in range(_MORE_THAN_ALL_THREADS)]

    async def end(waiting: list[asyncio.Future[bool]]) -> list[bool]:
        return await asyncio.gather(*waiting)

    assert client.portal
    waiting = client.portal.call(occupy)
    try:
        yield
    finally:
        release.set()
        were_busy = client.portal.call(end, waiting)
    assert all(were_busy), "a request waited until the threads were released"


@pytest.mark.parametrize("threads", [None, PARSING], ids=["default", "parsing"])
def test_keys_and_jobs_are_read_while_other_threads_are_busy(pool: ModelPool, threads: ThreadPool | None):
    """Gradio serves files on the default threads without a key. Large bodies are parsed on the others."""
    key, secret = new_key("me", Role.USER, 0)
    with serving(pool, key_store(key)) as client, busy(client, threads):
        client.headers["authorization"] = f"Bearer {secret}"
        job = client.post("/v1/jobs", json={"prompt": "a cat"})
        assert job.status_code == 202
        for path in ("/v1/models", "/v1/jobs", job.headers["location"], "/metrics"):
            assert client.get(path).status_code == 200, path


def test_forms_are_parsed_while_stores_are_busy(pool: ModelPool):
    with serving(pool) as client, busy(client, STORES):
        response = client.post("/v2beta/stable-image/generate/sd3", files={"prompt": (None, "")})
        assert response.status_code == 400


def test_stalled_uploads_do_not_block_other_uploads(pool: ModelPool):
    body = json.dumps({"image": base64.b64encode(write_png(np.zeros((16, 16, 3), np.uint8), {})).decode()})
    incomplete = (
        b"POST /sdapi/v1/png-info HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b'content-length: 1000\r\n\r\n{"image":"'
    )
    with listening(pool, body_timeout_s=10 * WAIT_S) as (host, port), ExitStack() as senders:
        for _ in range(2 * MAX_PARSED_IMAGES):
            senders.enter_context(socket.create_connection((host, port))).sendall(incomplete)
        headers = {"content-type": "application/json"}
        url = f"http://{host}:{port}/sdapi/v1/png-info"
        # The server accepts connections in order, so it has begun to read those above.
        for _ in range(2):
            assert httpx.post(url, content=body, headers=headers, timeout=WAIT_S).status_code == 200


def test_the_images_that_one_caller_sends_at_once_are_limited(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "MAX_RECEIVED_BYTES_EACH", 1000)
    with serving(pool, requests_per_minute=1) as client:
        response = client.post("/sdapi/v1/png-info", json={"image": "a" * 1000})
        assert response.status_code == 429
        assert "too many images are being received" in response.json()["detail"]
        assert response.headers["retry-after"] == "1"
        assert client.post("/sdapi/v1/png-info", json={"image": "a"}).status_code == 422
