"""`/v1/jobs` and `/v1/artifacts`: jobs, their events and images, links, idempotency keys and webhooks."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from sd35.access.keys import Role, new_key
from sd35.api.jobs import wire_event
from sd35.errors import StoreUnavailable
from sd35.generation.model_pool import ModelPool
from sd35.images.png import read_png
from sd35.images.record import from_text
from sd35.jobs.progress import Event
from sd35.storage.jobs import Status
from sd35.storage.links import Links
from tests.support.fake_backend import FakeBackend, Fault, key_store
from tests.support.services import memory_storage
from tests.support.serving import serving

CAT = {"prompt": "a cat", "seed": 1}


def events_of(client: TestClient, job: str, **options: Any) -> list[dict[str, Any]]:
    """Return the events of a job until it ends: their id, event and data."""
    text = client.get(f"/v1/jobs/{job}/events", **options).text
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append({**fields, "data": json.loads(fields["data"])})
    return events


def run_job(client: TestClient, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    """Create a job, wait for its end, and return it."""
    response = client.post("/v1/jobs", json=body, headers=headers)
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    events_of(client, job["id"], headers=headers)
    ended: dict[str, Any] = client.get(f"/v1/jobs/{job['id']}", headers=headers).json()
    return ended


def test_a_job_is_accepted_followed_and_fetched(client: TestClient):
    """Its image is the one that a synchronous call returns."""
    job = run_job(client, CAT)
    assert (job["status"], job["error"], job["image"]["cached"]) == ("succeeded", None, False)
    assert job["request"]["prompt"] == "a cat"
    image = client.get(job["image"]["url"])
    assert (image.status_code, image.headers["content-type"]) == (200, "image/png")
    call = client.post("/v1/txt2img", json=CAT)
    assert call.content == image.content
    assert call.headers["x-sd35-cache"] == "hit"
    assert call.headers["x-sd35-digest"] == job["image"]["digest"]
    assert run_job(client, CAT)["image"]["cached"] is True


def test_events_are_numbered_and_resumed(client: TestClient, backend: FakeBackend):
    backend.hold()
    job = client.post("/v1/jobs", json={"prompt": "a cat", "steps": 6}).json()
    timer = threading.Timer(0.1, backend.release.set)
    timer.start()
    *running, end = events = events_of(client, job["id"], params={"preview": "true"})
    timer.join()
    assert [int(event["id"]) for event in events] == sorted({int(event["id"]) for event in events})
    assert {event["event"] for event in running} <= {"queued", "running"}
    now = client.get(f"/v1/jobs/{job['id']}").json()
    assert (end["event"], {**now, **end["data"]}) == ("succeeded", now)
    assert end["data"]["image"]["digest"]
    assert events_of(client, job["id"], headers={"Last-Event-ID": "7"}) == [end]
    assert events_of(client, job["id"], headers={"Last-Event-ID": end["id"]}) == []


def test_a_step_event_has_the_time_left_and_a_preview_on_request():
    pixels = np.zeros((16, 16, 3), np.uint8)
    event = Event(4, Status.RUNNING, done=3, steps=6, remaining_s=1.234, preview=lambda: pixels)
    plain, shown = (wire_event(event, has_preview=has_preview) for has_preview in (False, True))
    assert (plain.event, plain.id) == ("running", "4")
    assert plain.data == {"status": "running", "step": 3, "steps": 6, "seconds_left": 1.2}
    kind, _, content = shown.data["preview"].partition(",")
    assert kind == "data:image/png;base64"
    assert (read_png(base64.b64decode(content))[0] == pixels).all()


def test_jobs_are_listed_newest_first_by_pages_and_status(client: TestClient, backend: FakeBackend):
    """A cursor continues where the page ended, even if jobs were added meanwhile."""
    made = [run_job(client, {**CAT, "seed": seed})["id"] for seed in range(5)]
    backend.faults["a dog"] = Fault.STEP_ERROR
    failed = run_job(client, {"prompt": "a dog", "seed": 1})
    assert failed["error"]["status"] == 500
    first = client.get("/v1/jobs", params={"limit": 4}).json()
    run_job(client, {**CAT, "seed": 9})
    second = client.get("/v1/jobs", params={"limit": 4, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in (*first["data"], *second["data"])] == [failed["id"], *reversed(made)]
    assert second["next_cursor"] is None
    assert [job["id"] for job in client.get("/v1/jobs?status=failed&status=queued").json()["data"]] == [failed["id"]]
    assert client.get("/v1/jobs?status=nonsense").status_code == 422


def test_deleting_cancels_a_running_job_and_removes_an_ended_one(client: TestClient, backend: FakeBackend):
    backend.hold()
    job = client.post("/v1/jobs", json={"prompt": "a tree", "seed": 1}).json()["id"]
    assert client.delete(f"/v1/jobs/{job}").json()["status"] == "cancelled"
    backend.release.set()
    assert client.get(f"/v1/jobs/{job}").json()["status"] == "cancelled"
    ended = run_job(client, CAT)
    assert client.delete(f"/v1/jobs/{ended['id']}").json()["image"] == ended["image"]
    for path in (f"/v1/jobs/{ended['id']}", f"/v1/jobs/{ended['id']}/events", ended["image"]["url"]):
        assert client.get(path).status_code == 404
    assert client.delete(f"/v1/jobs/{ended['id']}").status_code == 404
    assert client.post("/v1/txt2img", json=CAT).headers["x-sd35-cache"] == "miss"


def test_a_job_whose_image_cannot_be_removed_can_be_deleted_later(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    storage = memory_storage()

    def unavailable(_: str) -> None:
        raise StoreUnavailable("gone")

    with serving(pool, storage=storage) as client:
        job = run_job(client, CAT)
        path, url = f"/v1/jobs/{job['id']}", job["image"]["url"]
        with monkeypatch.context() as broken:
            broken.setattr(storage.images.blobs, "delete", unavailable)
            assert client.delete(path).status_code == 503
        assert client.delete(path).status_code == 200
        assert [client.get(each).status_code for each in (path, url)] == [404, 404]
        assert storage.images.blobs.get(f"{job['image']['digest']}.png") is None


def test_an_idempotency_key_makes_one_image(client: TestClient, backend: FakeBackend):
    headers = {"Idempotency-Key": "one"}
    jobs = [client.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers).json()["id"] for _ in range(3)]
    assert len(set(jobs)) == 1
    conflict = client.post("/v1/jobs", json={"prompt": "a dog"}, headers=headers)
    assert (conflict.status_code, "'one' was used before" in conflict.json()["detail"]) == (409, True)
    headers = {"Idempotency-Key": "two"}
    first, again = (client.post("/v1/txt2img", json={"prompt": "a cat"}, headers=headers) for _ in range(2))
    assert (first.headers["x-sd35-cache"], again.headers["x-sd35-cache"]) == ("miss", "hit")
    assert again.content == first.content
    assert client.post("/v1/txt2img", json={"prompt": "a dog"}, headers=headers).status_code == 409
    assert client.post("/v1/txt2img", json={"prompt": "a"}, headers={"Idempotency-Key": "a b"}).status_code == 422
    failing = {"Idempotency-Key": "three"}
    backend.faults["a tree"] = Fault.STEP_ERROR
    errors = [client.post("/v1/txt2img", json={"prompt": "a tree"}, headers=failing) for _ in range(2)]
    assert [error.status_code for error in errors] == [500, 500]
    assert backend.steps.count("a tree") == 2  # the first two steps of one image


@pytest.mark.parametrize(("name", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("avif", "AVIF"), ("png", "PNG")])
def test_images_have_the_requested_format(client: TestClient, name: str, kind: str):
    by_field = client.post("/v1/txt2img", json={**CAT, "output_format": name})
    by_header = client.post("/v1/txt2img", json=CAT, headers={"Accept": f"image/{name}"})
    assert by_field.headers["content-type"] == by_header.headers["content-type"] == f"image/{name}"
    assert Image.open(io.BytesIO(by_field.content)).format == kind
    assert by_header.content == by_field.content
    bare = client.post("/v1/txt2img", json={**CAT, "output_format": name, "metadata": False}).content
    assert (b"sd35.request" in bare, b"a cat" in bare) == (False, False)
    job = run_job(client, {**CAT, "output_format": name})
    assert client.get(job["image"]["url"]).content == by_field.content
    assert client.post("/v1/txt2img", json=CAT, headers={"Accept": "text/html"}).status_code == 406


@pytest.mark.parametrize("name", ["png", "webp"])
def test_the_url_of_a_job_without_metadata_gives_a_file_without_metadata(client: TestClient, name: str):
    job = run_job(client, {**CAT, "output_format": name, "metadata": False})
    file = client.get(job["image"]["url"])
    assert file.headers["content-type"] == f"image/{name}"
    assert Image.open(io.BytesIO(file.content)).info.keys() & {"sd35.request", "xmp"} == set()
    assert file.content == client.post("/v1/txt2img", json={**CAT, "output_format": name, "metadata": False}).content


def test_a_link_can_leave_out_the_metadata(client: TestClient):
    path = run_job(client, CAT)["image"]["url"]
    links = [client.post(f"{path}/link{query}").json()["url"] for query in ("", "?metadata=false")]
    assert [bool(read_png(client.get(link).content)[1]) for link in links] == [True, False]
    assert client.get(links[1].replace("metadata=false", "metadata=true")).status_code == 403


def test_the_operator_can_leave_out_metadata(pool: ModelPool):
    with serving(pool, keep_metadata=False) as client:
        response = client.post("/v1/txt2img", json=CAT)
        assert read_png(response.content)[1] == {}
        again = client.get(f"/v1/artifacts/{response.headers['x-sd35-digest']}")
        assert read_png(again.content)[1] == {}


def test_range_and_conditional_requests_are_answered(client: TestClient):
    made = client.post("/v1/txt2img", json=CAT)
    url = f"/v1/artifacts/{made.headers['x-sd35-digest']}"
    whole = client.get(url)
    part = client.get(url, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, whole.content[2:6])
    assert client.get(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    assert client.get(url, headers={"Range": f"bytes={len(whole.content)}-"}).status_code == 416
    head = client.head(url)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole.content)))
    assert client.get("/v1/artifacts/" + "0" * 64).status_code == 404
    for wrong in ("nonsense", "..%2f..%2fetc%2fpasswd", "0" * 63 + "G"):
        assert client.get(f"/v1/artifacts/{wrong}").status_code in {404, 422}


@pytest.fixture
def two_users(pool: ModelPool) -> Iterator[tuple[TestClient, dict[str, str], dict[str, str], dict[str, str]]]:
    """A client of an app with keys, and the headers of two users and of an administrator."""
    keys = [new_key(name, role, 0) for name, role in (("me", Role.USER), ("you", Role.USER), ("it", Role.ADMIN))]
    with serving(pool, key_store(*(key for key, _ in keys))) as client:
        me, you, admin = ({"Authorization": f"Bearer {secret}"} for _, secret in keys)
        yield client, me, you, admin


def test_jobs_and_images_of_other_owners_are_not_found(
    two_users: tuple[TestClient, dict[str, str], dict[str, str], dict[str, str]],
):
    client, me, you, admin = two_users
    job = run_job(client, CAT, **me)
    paths = [f"/v1/jobs/{job['id']}", f"/v1/jobs/{job['id']}/events", job["image"]["url"]]
    for headers, status in ((me, 200), (you, 404), (admin, 200), ({}, 401)):
        assert [client.get(path, headers=headers).status_code for path in paths] == [status] * 3
    assert client.get("/v1/jobs", headers=you).json()["data"] == []
    assert len(client.get("/v1/jobs", headers=admin).json()["data"]) == 1
    assert client.delete(paths[0], headers=you).status_code == 404
    assert client.delete(paths[2], headers=you).status_code == 404
    assert client.post(f"{paths[2]}/link", headers=you).status_code == 404
    assert client.post("/v1/txt2img", json=CAT, headers=you).headers["x-sd35-cache"] == "hit"
    assert client.get(paths[2], headers=you).status_code == 200  # they own it too
    assert client.delete(paths[2], headers=me).status_code == 204
    assert client.get(paths[2], headers=me).status_code == 404
    assert client.get(paths[2], headers=you).status_code == 200


def test_a_link_works_without_a_key_until_it_expires(
    two_users: tuple[TestClient, dict[str, str], dict[str, str], dict[str, str]], monkeypatch: pytest.MonkeyPatch
):
    client, me, _, _ = two_users
    digest = run_job(client, CAT, **me)["image"]["digest"]
    link = client.post(f"/v1/artifacts/{digest}/link?output_format=webp&expires_in_s=60", headers=me).json()
    response = client.get(link["url"])
    assert (response.status_code, response.headers["content-type"]) == (200, "image/webp")
    for changed in (link["url"].replace("webp", "jpeg"), link["url"] + "0", link["url"].replace(digest, "0" * 64)):
        assert client.get(changed).status_code == 403
    assert client.get(link["url"].split("?")[0]).status_code == 401
    check = Links.check
    monkeypatch.setattr(Links, "check", lambda self, path, query, now_s: check(self, path, query, now_s + 61))
    assert client.get(link["url"]).status_code == 403


def test_a_webhook_is_refused_without_a_signing_secret(client: TestClient):
    response = client.post("/v1/jobs", json={**CAT, "webhook": "https://example.com/"})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "webhook")


def test_the_metadata_of_an_image_is_served(client: TestClient):
    digest = run_job(client, CAT)["image"]["digest"]
    record = from_text(read_png(client.get(f"/v1/artifacts/{digest}").content)[1])
    assert record.request.digest == digest
