"""The page at `/`: without the user interface, while it loads, and when it is ready."""

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


def app_with(tmp_path: Path, mount: UiMount | None, on_ready: Callable[[], None] = lambda: None) -> Any:
    """Return an app with a mount of the user interface."""
    service = service_of(fake_pool(tmp_path))
    return create_app(ServiceLifecycle(lambda: service, on_ready, print), load_settings(), key_store(), ui=mount)


def test_without_the_extra_a_page_links_to_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ui_mount, "find_spec", lambda _: None)
    mount = ui_mount_of(load_settings(), "http://127.0.0.1:8000")
    mount.start()
    with TestClient(app_with(tmp_path, mount), "http://127.0.0.1", follow_redirects=False) as client:
        answer = client.get("/")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert '<a href="/docs">' in answer.text
        assert client.get("/ui/").status_code == 404
        assert client.get("/ui").text == answer.text


def test_the_user_interface_can_be_switched_off():
    assert ui_mount_of(load_settings({"ui": "off"}), "http://127.0.0.1:8000").state == "absent"


def test_the_first_page_waits_for_the_user_interface_and_redirects_to_it(tmp_path: Path):
    may_load, stub = threading.Event(), StubUi()

    def load() -> StubUi:
        assert may_load.wait(WAIT_S)
        return stub

    mount = UiMount(load)
    with TestClient(app_with(tmp_path, mount, mount.start), "http://127.0.0.1", follow_redirects=False) as client:
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
        client.portal.call(mount.close)
        assert stub.is_closed
        assert client.get("/ui/").status_code == 404


def test_the_service_works_if_the_user_interface_cannot_be_loaded(tmp_path: Path):
    def load() -> StubUi:
        raise ImportError("half installed")

    mount = UiMount(load)
    with TestClient(app_with(tmp_path, mount, mount.start), "http://127.0.0.1") as client:
        while "One moment" in (answer := client.get("/")).text:
            pass
        assert '<a href="/docs">' in answer.text
        assert client.get("/healthz").status_code == 200


def test_the_api_is_the_same_with_and_without_the_user_interface(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    without, with_it = app_with(tmp_path / "a", None), app_with(tmp_path / "b", UiMount(StubUi))
    assert without.openapi() == with_it.openapi()
    assert not [path for path in with_it.openapi()["paths"] if path == "/" or path.startswith("/ui")]
