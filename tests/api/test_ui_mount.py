"""The front door: `/` without the page, while it is loaded, and with it; the API is the same with and without."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sd35.api import ui_mount
from sd35.api.app import create_app
from sd35.api.ui_mount import UiMount, ui_mount_of
from sd35.service.lifecycle import ServiceLifecycle
from sd35.settings import load_settings
from tests.support.fake_backend import WAIT_S, fake_pool, key_store
from tests.support.services import service_of
from tests.support.serving import StubUi


def app_with(tmp_path: Path, place: UiMount | None, on_ready: Callable[[], None] = lambda: None) -> Any:
    """An app as `sd35 serve` has it, with keys."""
    service = service_of(fake_pool(tmp_path))
    return create_app(ServiceLifecycle(lambda: service, on_ready, print), load_settings(), key_store(), ui=place)


def test_without_the_extra_there_is_a_small_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It links to the API's documentation; what would be the page is not there, and nothing is tried to be loaded."""
    monkeypatch.setattr(ui_mount, "find_spec", lambda _: None)
    place = ui_mount_of(load_settings(), "http://127.0.0.1:8000")
    place.start()
    with TestClient(app_with(tmp_path, place), "http://127.0.0.1", follow_redirects=False) as client:
        answer = client.get("/")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert '<a href="/docs">' in answer.text
        assert client.get("/ui/").status_code == 404
        assert client.get("/ui").text == answer.text


def test_the_page_can_be_switched_off():
    """By `ui`, though the extra is there."""
    assert ui_mount_of(load_settings({"ui": "off"}), "http://127.0.0.1:8000").state == "absent"


def test_the_first_page_waits_for_the_page_and_leads_to_it(tmp_path: Path):
    """While it is loaded, it says so and asks again by itself; nobody needs a key for that."""
    may_load, stub = threading.Event(), StubUi()

    def load() -> StubUi:
        assert may_load.wait(WAIT_S)
        return stub

    place = UiMount(load)
    with TestClient(app_with(tmp_path, place, place.start), "http://127.0.0.1", follow_redirects=False) as client:
        answer = client.get("/")
        assert answer.status_code == 200
        assert "One moment" in answer.text
        assert 'http-equiv="refresh"' in answer.text
        assert client.get("/ui/").status_code == 404
        may_load.set()
        while (answer := client.get("/")).status_code == 200:
            assert "One moment" in answer.text
        assert (answer.status_code, answer.headers["location"]) == (307, "/ui/")
        assert client.get("/ui/").text == "hello"
        assert client.portal
        client.portal.call(place.close)
        assert stub.is_closed
        assert client.get("/ui/").status_code == 404


def test_a_page_that_cannot_be_loaded_costs_the_service_nothing(tmp_path: Path):
    """The small page is there in its place."""

    def load() -> StubUi:
        raise ImportError("half installed")

    place = UiMount(load)
    with TestClient(app_with(tmp_path, place, place.start), "http://127.0.0.1") as client:
        while "One moment" in (answer := client.get("/")).text:
            pass
        assert '<a href="/docs">' in answer.text
        assert client.get("/healthz").status_code == 200


def test_the_api_is_the_same_with_and_without_the_page(tmp_path: Path):
    """Its description, to the last word."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    without, with_it = app_with(tmp_path / "a", None), app_with(tmp_path / "b", UiMount(StubUi))
    assert without.openapi() == with_it.openapi()
    assert not [path for path in with_it.openapi()["paths"] if path == "/" or path.startswith("/ui")]
