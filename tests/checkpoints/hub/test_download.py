"""Download, verify and remove registered checkpoints, with a test server for the hub's protocol."""

import errno
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

from sd35.checkpoints.hub import cache
from sd35.checkpoints.hub import download as downloads
from sd35.checkpoints.hub.download import fetch
from sd35.checkpoints.hub.plan import plan_download
from sd35.checkpoints.hub.verify import verify_checkpoint
from sd35.checkpoints.registry import RegisteredCheckpoint
from sd35.errors import CheckpointError, DownloadFailed
from tests.checkpoints.conftest import LARGE, OTHERS, REPOSITORY, REVISION, SMALL, TRANSFORMER
from tests.support.hub_server import Hub, Repository, checksum

CHECKSUM = checksum(TRANSFORMER, LARGE[TRANSFORMER])
HALF = len(LARGE[TRANSFORMER]) // 2


def pull(entry: RegisteredCheckpoint) -> Path:
    """Download the missing files."""
    return fetch(plan_download(entry), lambda _: None)


def contents(directory: Path) -> dict[str, bytes]:
    """Return the contents of all files below a directory, by relative path."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def partial_file(entry: RegisteredCheckpoint) -> Path:
    """Return the path of the transformer's incomplete weights."""
    return cache.cache_paths(entry).partial(CHECKSUM)


def break_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the connection in the middle of the transformer's weights, and disable retries."""
    hub.cuts = {TRANSFORMER: [HALF]}
    monkeypatch.setattr(downloads, "_RETRY_WAITS_S", ())


def test_only_files_of_the_checkpoint_are_downloaded(hub: Hub, entry: RegisteredCheckpoint):
    """FP16 copies, single-file weights and pickles are not requested."""
    plan = plan_download(entry)
    assert plan.missing_bytes == sum(len(content) for content in {*SMALL.values(), *LARGE.values()})
    arrived: list[int] = []
    assert contents(fetch(plan, arrived.append)) == {**SMALL, **LARGE}
    assert sum(arrived) == plan.missing_bytes
    assert not {one.path for one in hub.asked} & OTHERS.keys()
    assert cache.cache_status(entry).is_complete
    assert plan_download(entry).missing == ()


def test_files_are_downloaded_in_parallel(hub: Hub, entry: RegisteredCheckpoint):
    """The server delays each large file until another is requested."""
    hub.meeting = threading.Barrier(2)  # there are six large files
    assert contents(pull(entry)) == {**SMALL, **LARGE}


def test_concurrent_pulls_download_each_file_once(hub: Hub, entry: RegisteredCheckpoint):
    """For each file, one waits for the other."""
    plans = [plan_download(entry), plan_download(entry)]
    with ThreadPoolExecutor() as pool:
        directories = list(pool.map(lambda plan: fetch(plan, lambda _: None), plans))
    assert contents(directories[0]) == contents(directories[1]) == {**SMALL, **LARGE}
    assert sorted(one.path for one in hub.asked) == sorted({*SMALL, *LARGE})


def test_other_programs_find_downloaded_files(hub: Hub, entry: RegisteredCheckpoint):
    """`huggingface_hub` reads the files from the cache without a server."""
    directory = pull(entry)
    hub.status = 503
    assert hf_hub_download(REPOSITORY, TRANSFORMER, revision=REVISION) == str(directory / TRANSFORMER)
    assert snapshot_download(REPOSITORY, revision=REVISION, local_files_only=True) == str(directory)


def test_files_from_other_programs_are_reused(hub: Hub, entry: RegisteredCheckpoint):
    """Cached files are not requested again, even if they belong to another revision."""
    snapshot_download(REPOSITORY, revision=REVISION, allow_patterns=["text_encoder/*"])
    elsewhere = Repository({TRANSFORMER: LARGE[TRANSFORMER]}, "2" * 40)
    hub.repositories[REPOSITORY], here = elsewhere, hub.repositories[REPOSITORY]
    snapshot_download(REPOSITORY, revision="2" * 40)
    hub.repositories[REPOSITORY] = here
    hub.asked.clear()
    plan = plan_download(entry)
    assert contents(fetch(plan, lambda _: None)).items() >= LARGE.items()
    assert not {one.path for one in hub.asked} & {TRANSFORMER, "text_encoder/model.safetensors"}
    assert plan.missing_bytes == sum(one.sent_bytes for one in hub.asked)


@pytest.fixture(params=["disabled", "not supported"])
def no_symlinks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_DISABLE_SYMLINKS forbids symbolic links, or the file system does not support them."""
    if request.param == "disabled":
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
        return

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS_WARNING", True)


@pytest.mark.usefixtures("no_symlinks")
def test_downloads_work_without_symbolic_links(hub: Hub, entry: RegisteredCheckpoint):
    """Each file is downloaded once, even if two paths have its content, and other programs find it."""
    content = LARGE["text_encoder/model.safetensors"]
    hub.repositories[REPOSITORY].files["text_encoder_2/model.safetensors"] = content
    expected = {**SMALL, **LARGE, "text_encoder_2/model.safetensors": content}
    plan = plan_download(entry)
    arrived: list[int] = []
    directory = fetch(plan, arrived.append)
    assert contents(directory) == expected
    assert not any(path.is_symlink() for path in directory.rglob("*"))
    assert sum(arrived) == plan.missing_bytes
    assert plan_download(entry).missing == ()
    assert cache.cache_status(entry).is_complete
    assert verify_checkpoint(entry, offline=False, on_bytes=lambda _: None).intact == tuple(
        file.path for file in plan.files
    )
    assert hf_hub_download(REPOSITORY, TRANSFORMER, revision=REVISION) == str(directory / TRANSFORMER)


@pytest.mark.usefixtures("no_symlinks")
def test_shared_files_are_copied_without_symbolic_links(hub: Hub, entry: RegisteredCheckpoint):
    """A damaged copy is detected and downloaded again, and the revision can be removed."""
    blob = cache.cache_paths(entry).blob(CHECKSUM)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(LARGE[TRANSFORMER])
    directory = pull(entry)
    assert hub.asked_for(TRANSFORMER) == []
    assert not (directory / TRANSFORMER).is_symlink()
    assert blob.read_bytes() == (directory / TRANSFORMER).read_bytes() == LARGE[TRANSFORMER]
    (directory / "vae/config.json").write_bytes(b"?" * len(SMALL["vae/config.json"]))
    (damaged,) = verify_checkpoint(entry, offline=False, on_bytes=lambda _: None).damaged
    cache.discard(directory / damaged)
    assert contents(pull(entry)) == {**SMALL, **LARGE}
    assert cache.remove(entry) >= sum(map(len, {**SMALL, **LARGE}.values()))
    assert not directory.exists()


def test_the_token_is_sent_to_the_hub_only(hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """It is not sent after a redirect to another server."""
    hub.tokens = hub.repositories[REPOSITORY].readers = {"hf_mine"}
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    pull(entry)
    assert {one.authorization for one in hub.asked if one.path in SMALL} == {"Bearer hf_mine"}
    assert {one.authorization for one in hub.asked if one.path in LARGE} == {None}


def test_a_broken_connection_is_resumed(hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """The call itself requests the remaining bytes."""
    monkeypatch.setattr(downloads, "_RETRY_WAITS_S", (0.0,))
    hub.cuts = {TRANSFORMER: [HALF, 100]}
    assert contents(pull(entry))[TRANSFORMER] == LARGE[TRANSFORMER]
    asked = [one.range for one in hub.asked_for(TRANSFORMER)]
    assert asked == [None, f"bytes={HALF}-", f"bytes={HALF + 100}-"]


def test_an_interrupted_pull_is_resumed(hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """The snapshot contains no partial file. The next pull requests and counts only the rest."""
    break_off(hub, monkeypatch)
    with pytest.raises(DownloadFailed, match=r"broke off .*run `sd35 pull small` again to resume"):
        pull(entry)
    assert partial_file(entry).stat().st_size == HALF
    assert not (cache.cache_paths(entry).snapshot / TRANSFORMER).exists()
    assert not cache.cache_status(entry).is_complete
    hub.asked.clear()
    plan = plan_download(entry)
    arrived: list[int] = []
    assert contents(fetch(plan, arrived.append)) == {**SMALL, **LARGE}
    assert [one.range for one in hub.asked_for(TRANSFORMER)] == [f"bytes={HALF}-"]
    assert plan.missing_bytes == sum(arrived) == sum(one.sent_bytes for one in hub.asked)


def test_ctrl_c_keeps_partial_files(hub: Hub, entry: RegisteredCheckpoint):
    """The call ends at once, and the next one resumes."""
    arrived: list[int] = []

    def interrupt(more: int) -> None:
        arrived.append(more)
        if sum(arrived) > sum(map(len, SMALL.values())):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(plan_download(entry), interrupt)
    before = plan_download(entry)
    assert before.missing_bytes <= sum(map(len, LARGE.values()))
    hub.asked.clear()
    assert contents(pull(entry)) == {**SMALL, **LARGE}
    assert sum(one.sent_bytes for one in hub.asked) == before.missing_bytes


def test_a_server_that_ignores_ranges_restarts_the_file(
    hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch
):
    """The file is written from the beginning, and its bytes are counted correctly."""
    break_off(hub, monkeypatch)
    with pytest.raises(DownloadFailed):
        pull(entry)
    hub.ignores_ranges = True
    plan = plan_download(entry)
    arrived: list[int] = []
    assert contents(fetch(plan, arrived.append))[TRANSFORMER] == LARGE[TRANSFORMER]
    assert sum(arrived) == plan.missing_bytes


@pytest.mark.parametrize("path", [TRANSFORMER, "vae/config.json"])
def test_a_file_with_a_wrong_checksum_never_reaches_the_cache(hub: Hub, entry: RegisteredCheckpoint, path: str):
    """The file is deleted, the error names it, and the next pull succeeds."""
    content = {**SMALL, **LARGE}[path]
    hub.swaps = {path: content[:-1] + b"?"}
    with pytest.raises(DownloadFailed, match=rf"{path} differs from the hub's file.*Run `sd35 pull small` again"):
        pull(entry)
    paths = cache.cache_paths(entry)
    assert not paths.blob(checksum(path, content)).exists()
    assert not paths.partial(checksum(path, content)).exists()
    hub.swaps.clear()
    assert contents(pull(entry))[path] == content


@pytest.mark.usefixtures("hub")
def test_a_truncated_file_is_downloaded_again(entry: RegisteredCheckpoint):
    """A blob of the wrong size is not used."""
    directory = pull(entry)
    (directory / TRANSFORMER).resolve().write_bytes(b"short")
    assert [file.path for file in plan_download(entry).missing] == [TRANSFORMER]
    assert contents(pull(entry))[TRANSFORMER] == LARGE[TRANSFORMER]


def test_insufficient_disk_space_is_reported_before_the_download(
    hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch
):
    """The error has the required and the free space, and mentions HF_HOME."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(DownloadFailed, match=r"small needs 0\.00 GB more, and .* has 0\.00 GB free; .*HF_HOME"):
        pull(entry)
    assert hub.asked == []


def test_a_disk_that_becomes_full_is_reported(hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """The written bytes are kept, and the next pull resumes."""

    def full(out: Any, block: bytes) -> None:
        if out.name == str(partial_file(entry)) and out.tell() + len(block) > HALF:
            out.write(block[: HALF - out.tell()])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        out.write(block)

    with monkeypatch.context() as until_room:
        until_room.setattr(downloads, "write", full)
        with pytest.raises(
            DownloadFailed, match=r"the disk of .* is full: free some space.*run `sd35 pull small` again"
        ):
            pull(entry)
    hub.asked.clear()
    assert contents(pull(entry)) == {**SMALL, **LARGE}
    assert [one.range for one in hub.asked_for(TRANSFORMER)] == [f"bytes={HALF}-"]


@pytest.mark.usefixtures("hub")
def test_an_unwritable_cache_is_named(entry: RegisteredCheckpoint, tmp_path: Path):
    """A file is in the place of the cache's directory. The error names HF_HOME."""
    (tmp_path / "hub").write_text("a file")
    with pytest.raises(DownloadFailed, match=r"cannot be used \(.*HF_HOME"):
        pull(entry)


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (
            None,
            r"no token was found: .* accept its licence at .*/small-sd3\.5, get a token at .*/settings/tokens",
        ),
        ("hf_wrong", r"does not accept the token .* create another at .*/settings/tokens"),
        ("hf_other", r"has no access to .*not in the authorized list.*accept its licence at .*/someone/small-sd3\.5"),
    ],
)
def test_denied_access_is_explained(
    hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch, token: str | None, says: str
):
    """A missing token, an unknown token and a missing licence have different remedies."""
    hub.tokens = {"hf_mine", "hf_other"}
    hub.repositories[REPOSITORY].readers = {"hf_mine"}
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DownloadFailed, match=says + r".*run `sd35 pull small` again"):
        pull(entry)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            RegisteredCheckpoint("small", REPOSITORY, "9" * 40),
            rf"{REPOSITORY} has no revision {'9' * 40}; correct its entry in the file of SD35_REGISTRY",
        ),
        (
            RegisteredCheckpoint("small", "someone/nothing", REVISION),
            r"has no repository someone/nothing, .* correct its entry",
        ),
    ],
)
def test_a_missing_revision_or_repository_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, asked: RegisteredCheckpoint, says: str
):
    """The error says where to correct the entry."""
    hub.tokens = {"hf_mine"}
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with pytest.raises(DownloadFailed, match=says):
        pull(asked)


def test_a_server_error_suggests_a_retry(hub: Hub, entry: RegisteredCheckpoint):
    """The error has the status."""
    hub.status = 500
    with pytest.raises(DownloadFailed, match=r"answered with status 500; run `sd35 pull small` again later"):
        pull(entry)


def test_a_repository_without_sd35_is_refused(hub: Hub, entry: RegisteredCheckpoint):
    """The missing parts are named before any download."""
    files = {path: content for path, content in SMALL.items() if not path.startswith("transformer")}
    hub.repositories[REPOSITORY].files = {**files, "unet/config.json": b"{}"}
    with pytest.raises(
        CheckpointError, match=r"not an SD3\.5 checkpoint in the Diffusers layout: it has no transformer"
    ):
        pull(entry)
    assert hub.asked == []


@pytest.mark.usefixtures("hub")
def test_an_unresolvable_host_is_named(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """The error lists what to check."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        DownloadFailed, match=r"the host name hub\.invalid cannot be resolved .*HF_ENDPOINT, and HTTPS_PROXY"
    ):
        plan_download(entry)


def closed_port() -> int:
    """Return a port on which no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.usefixtures("hub")
def test_an_unreachable_host_is_named(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """The error lists what to check."""
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1 cannot be reached .*HF_ENDPOINT and HTTPS_PROXY"):
        plan_download(entry)


@pytest.mark.parametrize("is_running", [False, True])
def test_a_failing_proxy_is_named_without_its_password(
    entry: RegisteredCheckpoint,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    is_running: bool,  # noqa: FBT001
):
    """The proxy is down, or requires authentication."""
    proxy = hub.url.removeprefix("http://") if is_running else f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{proxy}")
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with pytest.raises(DownloadFailed, match=rf"the proxy {proxy} cannot reach hub\.invalid .*HTTPS_PROXY") as raised:
        plan_download(entry)
    assert "secret" not in str(raised.value)


@pytest.mark.usefixtures("hub")
def test_hf_hub_offline_prevents_downloads(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """The error names the variable."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadFailed, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids downloads"):
        plan_download(entry)


@pytest.mark.parametrize("offline", [False, True])
def test_verify_finds_damage_that_pull_repairs(hub: Hub, entry: RegisteredCheckpoint, offline: bool):  # noqa: FBT001
    """The damage is changed bytes in large and small files, and a missing file."""
    directory = pull(entry)
    assert verify_checkpoint(entry, offline=offline, on_bytes=lambda _: None).damaged == ()
    for path in (TRANSFORMER, "vae/config.json"):
        content = (directory / path).read_bytes()
        (directory / path).resolve().write_bytes(content[:-1] + b"?")
    (directory / "tokenizer/tokenizer_config.json").resolve().unlink()
    hub.status = 503 if offline else 0
    found = verify_checkpoint(entry, offline=offline, on_bytes=lambda _: None)
    assert found.damaged == (TRANSFORMER, "vae/config.json")
    assert found.missing == ("tokenizer/tokenizer_config.json",)
    assert set(found.intact) == {*SMALL, *LARGE} - {*found.damaged, *found.missing}
    hub.status = 0
    for path in found.damaged:
        cache.discard(directory / path)
    assert contents(pull(entry)) == {**SMALL, **LARGE}


@pytest.mark.usefixtures("hub")
def test_verify_offline_reports_files_without_a_checksum(entry: RegisteredCheckpoint):
    """A file that is not a link of the cache has no recorded checksum."""
    path = pull(entry) / "vae/config.json"
    path.unlink()
    path.write_bytes(SMALL["vae/config.json"])
    assert verify_checkpoint(entry, offline=True, on_bytes=lambda _: None).unknown == ("vae/config.json",)
    assert verify_checkpoint(entry, offline=False, on_bytes=lambda _: None).unknown == ()


def test_remove_deletes_one_revision_and_returns_the_freed_bytes(hub: Hub, entry: RegisteredCheckpoint):
    """Files that other revisions share, and forks, stay complete."""
    pull(entry)
    fork = RegisteredCheckpoint("fork", "another/fork", REVISION)
    hub.repositories[fork.repository] = hub.repositories[REPOSITORY]
    pull(fork)
    newer = RegisteredCheckpoint("newer", REPOSITORY, "2" * 40)
    changed = {**hub.repositories[REPOSITORY].files, TRANSFORMER: b"new"}
    hub.repositories[REPOSITORY] = Repository(changed, newer.revision)
    pull(newer)
    assert cache.remove(entry) == len(LARGE[TRANSFORMER])
    assert not cache.cache_paths(entry).snapshot.exists()
    assert verify_checkpoint(newer, offline=True, on_bytes=lambda _: None).damaged == ()
    assert cache.cache_status(newer).is_complete
    assert cache.cache_status(fork).is_complete
    assert cache.remove(newer) == sum(map(len, {*SMALL.values(), *LARGE.values(), b"new"})) - len(LARGE[TRANSFORMER])
    with pytest.raises(CheckpointError, match="newer is not on disk"):
        cache.remove(newer)


def test_remove_deletes_partial_files(hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """After an interrupted download, nothing is left."""
    break_off(hub, monkeypatch)
    with pytest.raises(DownloadFailed):
        pull(entry)
    stored = cache.cache_status(entry).stored_bytes
    assert cache.remove(entry) == stored >= HALF
    assert not cache.cache_paths(entry).repository.exists()


def test_remove_handles_a_damaged_cache(hub: Hub, entry: RegisteredCheckpoint):
    """Dangling links are deleted; damage that the library refuses is reported."""
    directory = pull(entry)
    (directory / TRANSFORMER).resolve().unlink()
    assert cache.remove(entry) > 0
    assert not directory.exists()
    directory = pull(entry)
    (directory.parent / "stray").touch()
    with pytest.raises(CheckpointError, match=r"is damaged \(.*stray\); delete this directory by hand"):
        cache.remove(entry)
    assert hub.asked


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>Sign in</html>",
        b"[]",
        b'{"id": "x", "siblings": 3}',
        b'{"id": "x", "siblings": [{"rfilename": null, "size": 1, "blobId": "1"}]}',
        b'{"id": "x", "siblings": ' + b"[" * 200_000,
        b'{"id": "x", "siblings": [' + b"9" * 5000 + b"]}",
        b'{"id": "\xff"}',
    ],
)
def test_an_unexpected_answer_names_hf_endpoint(hub: Hub, entry: RegisteredCheckpoint, answer: bytes):
    """No file is requested."""
    hub.listing = answer
    with pytest.raises((DownloadFailed, CheckpointError), match=r"check that HF_ENDPOINT is|is not an SD3\.5"):
        pull(entry)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"blobId": "../../../../escaped"}, r"lists no checksum of vae/config\.json"),
        ({"blobId": None}, r"lists no checksum of vae/config\.json"),
        ({"size": "9"}, r"lists no size of vae/config\.json"),
        ({"size": -1}, r"lists no size of vae/config\.json"),
    ],
)
def test_a_listing_with_an_invalid_checksum_or_size_is_refused(
    hub: Hub, entry: RegisteredCheckpoint, changed: dict[str, object], says: str
):
    """Checksums become file names in the cache, so they are validated first."""
    files = {**SMALL, **LARGE}
    listed = [
        {"rfilename": path, "size": len(content), "blobId": checksum(path, content)} for path, content in files.items()
    ]
    listed = [one | changed if one["rfilename"] == "vae/config.json" else one for one in listed]
    hub.listing = json.dumps({"id": "x", "siblings": listed}).encode()
    with pytest.raises(DownloadFailed, match=says):
        pull(entry)
    assert hub.asked == []


def refuse(number: int) -> Callable[..., Any]:
    """Return a function that raises OSError with an error number and its first argument as the file."""

    def refused(path: str | Path, *_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    return refused


@pytest.mark.usefixtures("hub")
def test_remove_reports_a_read_only_file_system(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """The error has the file and the reason."""
    pull(entry)
    monkeypatch.setattr(shutil, "rmtree", refuse(errno.EROFS))
    with pytest.raises(CheckpointError, match=r"removed \(/.*: Read-only file system\); correct this and retry$"):
        cache.remove(entry)


@pytest.mark.usefixtures("hub")
def test_remove_checks_permissions_before_deleting(
    entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """An unwritable directory is named, nothing is deleted, and the library logs nothing."""
    directory = pull(entry)
    blobs = cache.cache_paths(entry).repository / "blobs"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != blobs and access(path, mode))
    with pytest.raises(CheckpointError, match=rf"small cannot be removed: {blobs} cannot be written to: .*belongs to"):
        cache.remove(entry)
    assert contents(directory) == {**SMALL, **LARGE}
    assert caplog.text == ""


@pytest.mark.usefixtures("hub")
def test_an_unreadable_cache_is_named(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """All commands that read the cache report it."""
    pull(entry)
    stat = Path.stat
    refused = refuse(errno.EACCES)
    monkeypatch.setattr(Path, "stat", lambda path, **how: (refused if REVISION in path.parts else stat)(path, **how))
    with pytest.raises(CheckpointError, match=r"small cannot be looked up in the cache \(/.*: Permission denied\)"):
        cache.cache_status(entry)
    with pytest.raises(CheckpointError, match=r"small cannot be verified \(/.*: Permission denied\)"):
        verify_checkpoint(entry, offline=True, on_bytes=lambda _: None)
    with pytest.raises(DownloadFailed, match=r"/.* cannot be used \(Permission denied\)"):
        plan_download(entry)


@pytest.mark.usefixtures("hub")
def test_verify_names_an_unreadable_file(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """This happens if the disk fails while a checksum is computed."""
    pull(entry)
    monkeypatch.setattr(Path, "open", refuse(errno.EIO))
    with pytest.raises(CheckpointError, match=r"small cannot be verified \(/.*: Input/output error\)"):
        verify_checkpoint(entry, offline=True, on_bytes=lambda _: None)
