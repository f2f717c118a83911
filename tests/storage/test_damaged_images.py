"""Damaged files of stored images are never returned, and are generated again."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from structlog.testing import capture_logs

from sd35.content_filter import AllowAll
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from sd35.generation.service import GenerationResult, GenerationService, Requester
from sd35.images.png import write_png
from sd35.service.service import Service
from sd35.storage.blobs.base import BlobStore
from sd35.storage.blobs.memory import MemoryBlobStore
from sd35.storage.images import ImageStore
from sd35.storage.integrity import checksum_of
from sd35.storage.jobs import JobSpec
from sd35.storage.memory.ownership import MemoryOwnershipIndex
from sd35.storage.names import name_of
from sd35.storage.storage import Storage
from tests.storage.test_images import during
from tests.support.fake_backend import FakeBackend
from tests.support.services import memory_storage, service_of

OpenStore: TypeAlias = Callable[[str | None], BlobStore]
Damage: TypeAlias = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "empty": lambda _: b"",
    "cut short": lambda png: png[: len(png) // 2],
    "one byte changed": lambda png: png[:-100] + bytes([png[-100] ^ 1]) + png[-99:],
    "longer": lambda png: png + b"\0",
}
ME = Requester("me", "me")


@pytest.fixture(params=["memory", "directory", "s3"])
def files(request: pytest.FixtureRequest, open_at: OpenStore, tmp_path: Path) -> BlobStore:
    """An empty store of each kind."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return open_at(f"s3://images/{tmp_path.name}")
    return open_at("memory" if request.param == "memory" else str(tmp_path / "images"))


@pytest.fixture(params=["recorded", "stored before"])
def has_checksum(request: pytest.FixtureRequest) -> bool:
    """Whether the image was stored by a version that records checksums."""
    return bool(request.param == "recorded")


@pytest.fixture
def damage(request: pytest.FixtureRequest) -> Damage:
    """A function that damages a file. It empties the file, unless the test chooses another."""
    return DAMAGES[getattr(request, "param", "empty")]


def forget_checksum(images: ImageStore, digest: str, owner: str) -> None:
    """Leave an image as a version without checksums would store it."""
    images.ownership.delete(digest)
    images.ownership.add(digest, owner, 1, 0.0)


def job_spec_of(pool: ModelPool, prompt: str = "a cat", idempotency_key: str | None = None) -> JobSpec:
    """Return a job of the owner "me"."""
    return JobSpec(pool.resolve(GenerationParams(prompt, seed=1)), "me", idempotency_key=idempotency_key)


def count_of(service: Service) -> float:
    """Return the number of damaged files that the metrics count."""
    return service.telemetry.metrics.registry.get_sample_value("sd35_damaged_images_total") or 0.0


@pytest.mark.parametrize("damage", DAMAGES, indirect=True)
def test_a_damaged_image_is_generated_again(
    pool: ModelPool, backend: FakeBackend, files: BlobStore, damage: Damage, *, has_checksum: bool
):
    """The new file replaces the damaged one, and the next request finds it."""
    storage = memory_storage()
    images = ImageStore(files, storage.database.ownership)
    service = service_of(pool, storage._replace(images=images))
    job_spec = job_spec_of(pool)

    async def scenario() -> list[GenerationResult]:
        first = await service.generate(job_spec, "me")
        if not has_checksum:
            forget_checksum(images, job_spec.request.digest, "me")
        files.replace(first.name, damage(first.png))
        return [first, await service.generate(job_spec, "me"), await service.generate(job_spec, "me")]

    with capture_logs() as logs:
        first, second, third = asyncio.run(scenario())
    assert [each.cache for each in (first, second, third)] == ["miss", "miss", "hit"]
    assert len(backend.steps) == 2 * first.request.steps
    assert second.unstored is None
    assert files.get(first.name) == first.png == second.png == third.png
    assert count_of(service) == 1
    (line,) = [each for each in logs if each["event"] == "a stored image is damaged"]
    assert (line["log_level"], line["file"]) == ("error", first.name)
    assert line["reason"]


@pytest.mark.parametrize("damage", DAMAGES, indirect=True)
def test_a_damaged_image_is_never_returned(pool: ModelPool, damage: Damage, *, has_checksum: bool):
    """It counts as missing until it is generated again."""
    storage = memory_storage()
    service, job_spec = service_of(pool, storage), job_spec_of(pool)
    digest = job_spec.request.digest

    async def scenario() -> None:
        first = await service.generate(job_spec, "me")
        if not has_checksum:
            forget_checksum(storage.images, digest, "me")
        storage.images.blobs.replace(first.name, damage(first.png))
        assert await service.image(digest, "me") is None
        await service.generate(job_spec, "me")
        assert await service.image(digest, "me") == first.png

    asyncio.run(scenario())


def test_a_file_stored_before_checksums_gets_one_when_it_is_read(pool: ModelPool):
    """From then on, changes are detected that the CRCs of the PNG file do not show."""
    storage = memory_storage()
    generation_service, job_spec = GenerationService(pool, storage.images, AllowAll()), job_spec_of(pool)
    first = asyncio.run(generation_service.generate(job_spec.request, ME))
    digest = job_spec.request.digest
    forget_checksum(storage.images, digest, "me")
    assert storage.database.ownership.checksums(first.name) == {}
    assert storage.images.read(digest) == first.png
    assert storage.database.ownership.checksums(first.name) == {checksum_of(first.png): len(first.png)}
    other = asyncio.run(generation_service.generate(job_spec_of(pool, "a dog").request, ME))
    storage.images.blobs.replace(first.name, other.png)
    assert storage.images.read(digest) is None


def test_a_damaged_image_of_a_finished_job_is_generated_again(pool: ModelPool):
    """A second request with the same idempotency key returns the image."""
    storage = memory_storage()
    service = service_of(pool, storage)
    job_spec = job_spec_of(pool, idempotency_key="once")

    async def scenario() -> tuple[GenerationResult, GenerationResult]:
        service.start()
        first = await service.generate(job_spec, "me")
        storage.images.blobs.replace(first.name, b"")
        second = await service.generate(job_spec, "me")
        await service.close()
        return first, second

    first, second = asyncio.run(scenario())
    assert second.png == first.png
    assert storage.images.read(job_spec.request.digest) == first.png


def test_a_damaged_file_is_not_restored_for_a_new_owner(monkeypatch: pytest.MonkeyPatch):
    """Another process adds an owner while the last one is removed."""
    images, name = ImageStore(MemoryBlobStore(), MemoryOwnershipIndex()), name_of("ab" * 32)
    images.add(name, "ab" * 32, "me", b"an image")
    images.blobs.replace(name, b"an im")
    during(monkeypatch, images.ownership, "remove", lambda: images.ownership.add("ab" * 32, "you", 9, 0.0))
    assert images.remove("ab" * 32, "me")
    assert images.blobs.get(name) is None


@pytest.mark.parametrize("method", ["put", "replace"])
def test_a_simultaneous_repair_by_another_process_leaves_a_good_file(monkeypatch: pytest.MonkeyPatch, method: str):
    """Both processes generate the image. Either file is valid."""
    files, index, name = MemoryBlobStore(), MemoryOwnershipIndex(), name_of("ab" * 32)
    here, elsewhere = ImageStore(files, index), ImageStore(files, index)
    here.add(name, "ab" * 32, "me", b"an image")
    files.replace(name, b"")
    during(monkeypatch, files, method, lambda: elsewhere.add(name, "ab" * 32, "you", b"of a newer version"))
    here.add(name, "ab" * 32, "me", b"an image")
    found = here.read("ab" * 32)
    assert found == files.get(name)
    assert found in {b"an image", b"of a newer version"}


@pytest.mark.parametrize("method", ["put", "replace"])
def test_the_checksum_is_recorded_before_the_file_is_written(monkeypatch: pytest.MonkeyPatch, method: str):
    """Otherwise, a reader in between would treat the new file as damaged."""
    images, name = ImageStore(MemoryBlobStore(), MemoryOwnershipIndex()), name_of("ab" * 32)
    if method == "replace":
        images.add(name, "ab" * 32, "me", b"of an older version")
        images.blobs.replace(name, b"")
    recorded: list[dict[str, int]] = []
    during(monkeypatch, images.blobs, method, lambda: recorded.append(images.ownership.checksums(name)))
    images.add(name, "ab" * 32, "me", b"an image")
    assert checksum_of(b"an image") in recorded[0]


@pytest.mark.parametrize("moment", [("ownership", "add_checksum"), ("blobs", "put")])
def test_two_versions_that_write_an_image_at_once_do_not_damage_it(
    monkeypatch: pytest.MonkeyPatch, moment: tuple[str, str]
):
    """Their records differ. The first file is kept and valid, whichever checksum is recorded first."""
    images, name = ImageStore(MemoryBlobStore(), MemoryOwnershipIndex()), name_of("ab" * 32)
    elsewhere = ImageStore(images.blobs, images.ownership)
    part, method = moment
    during(
        monkeypatch,
        getattr(images, part),
        method,
        lambda: elsewhere.add(name, "ab" * 32, "you", b"of a newer version"),
    )
    images.add(name, "ab" * 32, "me", b"an image")
    assert images.read("ab" * 32) == b"of a newer version"


def test_a_file_of_the_wrong_size_gets_no_signed_url(s3: pytest.MonkeyPatch, open_at: OpenStore):
    """Neither does a file without a checksum, until the service has read it once."""
    del s3
    files, index, png = open_at("s3://images/signed"), MemoryOwnershipIndex(), small_png()
    digest = "ab" * 32
    images, name = ImageStore(files, index), name_of(digest, is_blurred=True)
    index.add(digest, "me", len(png), 0.0)
    files.put(name, png)
    assert images.sign(digest, 60) is None
    assert images.read(digest) == png
    assert (images.sign(digest, 60) or "").startswith("http")
    files.replace(name, png[:-1])
    assert images.sign(digest, 60) is None
    assert images.read(digest) is None


def small_png() -> bytes:
    """Return a small PNG file without a record."""
    import numpy as np

    return write_png(np.zeros((2, 2, 3), np.uint8), {})


def test_an_image_with_an_unreadable_record_is_generated_again(pool: ModelPool, monkeypatch: pytest.MonkeyPatch):
    """For example, if another version wrote the record."""
    storage: Storage = memory_storage()
    generation_service, job_spec = GenerationService(pool, storage.images, AllowAll()), job_spec_of(pool)
    first = asyncio.run(generation_service.generate(job_spec.request, ME))
    unknown = first.png.replace(b"sd35.maker", b"sd35.mAker")
    monkeypatch.setattr("sd35.storage.images.check_file", lambda *_: None)
    storage.images.blobs.replace(first.name, unknown)
    second = asyncio.run(generation_service.generate(job_spec.request, ME))
    assert (second.cache, second.png) == ("miss", first.png)
