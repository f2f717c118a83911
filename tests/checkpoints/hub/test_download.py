"""Fetch, check and remove registered checkpoints, from a server that speaks the hub's protocol."""

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
    """Fetch what is missing."""
    return fetch(plan_download(entry), lambda _: None)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def part_of(entry: RegisteredCheckpoint) -> Path:
    """Where the transformer's weights are while they come."""
    return cache.cache_paths(entry).partial(CHECKSUM)


def break_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the connection end in the middle of the transformer's weights, and nothing be tried again."""
    hub.cuts = {TRANSFORMER: [HALF]}
    monkeypatch.setattr(downloads, "_RETRY_WAITS_S", ())


def test_only_the_files_of_the_checkpoint_come(hub: Hub, entry: RegisteredCheckpoint):
    """Each part's weights once: no FP16 copies, no single-file weights, no pickles; what came is what the hub has."""
    wanted = plan_download(entry)
    assert wanted.missing_bytes == sum(len(content) for content in {*SMALL.values(), *LARGE.values()})
    arrived: list[int] = []
    assert contents(fetch(wanted, arrived.append)) == {**SMALL, **LARGE}
    assert sum(arrived) == wanted.missing_bytes
    assert not {one.path for one in hub.asked} & OTHERS.keys()
    assert cache.cache_status(entry).is_complete
    assert plan_download(entry).missing == ()


def test_files_come_side_by_side(hub: Hub, entry: RegisteredCheckpoint):
    """The server holds each large file back until another is asked for as well."""
    hub.meeting = threading.Barrier(2)  # there are six of them
    assert contents(pull(entry)) == {**SMALL, **LARGE}


def test_two_pulls_at_once_fetch_each_file_once(hub: Hub, entry: RegisteredCheckpoint):
    """One waits for the other, file by file, and both end well."""
    plans = [plan_download(entry), plan_download(entry)]
    with ThreadPoolExecutor() as pool:
        directories = list(pool.map(lambda wanted: fetch(wanted, lambda _: None), plans))
    assert contents(directories[0]) == contents(directories[1]) == {**SMALL, **LARGE}
    assert sorted(one.path for one in hub.asked) == sorted({*SMALL, *LARGE})


def test_other_programs_find_what_came(hub: Hub, entry: RegisteredCheckpoint):
    """`huggingface_hub` itself takes the files from the cache, without a server."""
    directory = pull(entry)
    hub.status = 503
    assert hf_hub_download(REPOSITORY, TRANSFORMER, revision=REVISION) == str(directory / TRANSFORMER)
    assert snapshot_download(REPOSITORY, revision=REVISION, local_files_only=True) == str(directory)


def test_what_other_programs_fetched_is_used(hub: Hub, entry: RegisteredCheckpoint):
    """Files in the cache are not asked for again, be they of this revision or, as the same file, of another."""
    snapshot_download(REPOSITORY, revision=REVISION, allow_patterns=["text_encoder/*"])
    elsewhere = Repository({TRANSFORMER: LARGE[TRANSFORMER]}, "2" * 40)
    hub.repositories[REPOSITORY], here = elsewhere, hub.repositories[REPOSITORY]
    snapshot_download(REPOSITORY, revision="2" * 40)
    hub.repositories[REPOSITORY] = here
    hub.asked.clear()
    wanted = plan_download(entry)
    assert contents(fetch(wanted, lambda _: None)).items() >= LARGE.items()
    assert not {one.path for one in hub.asked} & {TRANSFORMER, "text_encoder/model.safetensors"}
    assert wanted.missing_bytes == sum(one.sent_bytes for one in hub.asked)


@pytest.fixture(params=["disabled", "not supported"])
def no_symlinks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symbolic links are forbidden by HF_HUB_DISABLE_SYMLINKS, or the file system has none."""
    if request.param == "disabled":
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
        return

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS_WARNING", True)


@pytest.mark.usefixtures("no_symlinks")
def test_files_come_where_there_are_no_symbolic_links(hub: Hub, entry: RegisteredCheckpoint):
    """As files of their own, each fetched once, also one that has two names; other programs find them there."""
    content = LARGE["text_encoder/model.safetensors"]
    hub.repositories[REPOSITORY].files["text_encoder_2/model.safetensors"] = content
    expected = {**SMALL, **LARGE, "text_encoder_2/model.safetensors": content}
    wanted = plan_download(entry)
    arrived: list[int] = []
    directory = fetch(wanted, arrived.append)
    assert contents(directory) == expected
    assert not any(path.is_symlink() for path in directory.rglob("*"))
    assert sum(arrived) == wanted.missing_bytes
    assert plan_download(entry).missing == ()
    assert cache.cache_status(entry).is_complete
    assert verify_checkpoint(entry, offline=False, on_bytes=lambda _: None).intact == tuple(
        file.path for file in wanted.files
    )
    assert hf_hub_download(REPOSITORY, TRANSFORMER, revision=REVISION) == str(directory / TRANSFORMER)


@pytest.mark.usefixtures("no_symlinks")
def test_what_another_revision_shows_stays_where_there_are_no_symbolic_links(hub: Hub, entry: RegisteredCheckpoint):
    """A file that is in the cache already is copied; a damaged one is found, and fetched again; all can be removed."""
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


def test_the_token_goes_to_the_hub_only(hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """Where the hub redirects to another server, the token is not sent along."""
    hub.tokens = hub.repositories[REPOSITORY].readers = {"hf_mine"}
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    pull(entry)
    assert {one.authorization for one in hub.asked if one.path in SMALL} == {"Bearer hf_mine"}
    assert {one.authorization for one in hub.asked if one.path in LARGE} == {None}


def test_a_broken_connection_is_gone_on_from(hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """In one call: what arrived before each break is kept, and only the rest is asked for."""
    monkeypatch.setattr(downloads, "_RETRY_WAITS_S", (0.0,))
    hub.cuts = {TRANSFORMER: [HALF, 100]}
    assert contents(pull(entry))[TRANSFORMER] == LARGE[TRANSFORMER]
    asked = [one.range for one in hub.asked_for(TRANSFORMER)]
    assert asked == [None, f"bytes={HALF}-", f"bytes={HALF + 100}-"]


def test_an_interrupted_pull_goes_on_where_it_stopped(
    hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch
):
    """The first says so and shows no half file; the second asks for the rest only, and counts only that."""
    break_off(hub, monkeypatch)
    with pytest.raises(DownloadFailed, match=r"broke off .*run `sd35 pull small` again to resume"):
        pull(entry)
    assert part_of(entry).stat().st_size == HALF
    assert not (cache.cache_paths(entry).snapshot / TRANSFORMER).exists()
    assert not cache.cache_status(entry).is_complete
    hub.asked.clear()
    wanted = plan_download(entry)
    arrived: list[int] = []
    assert contents(fetch(wanted, arrived.append)) == {**SMALL, **LARGE}
    assert [one.range for one in hub.asked_for(TRANSFORMER)] == [f"bytes={HALF}-"]
    assert wanted.missing_bytes == sum(arrived) == sum(one.sent_bytes for one in hub.asked)


def test_ctrl_c_keeps_what_arrived(hub: Hub, entry: RegisteredCheckpoint):
    """It ends the call at once, and the next one does not begin anew."""
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


def test_a_server_that_sends_all_again_does_no_harm(
    hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch
):
    """Where a range is answered with the whole file, the file is begun anew, and counted right."""
    break_off(hub, monkeypatch)
    with pytest.raises(DownloadFailed):
        pull(entry)
    hub.ignores_ranges = True
    wanted = plan_download(entry)
    arrived: list[int] = []
    assert contents(fetch(wanted, arrived.append))[TRANSFORMER] == LARGE[TRANSFORMER]
    assert sum(arrived) == wanted.missing_bytes


@pytest.mark.parametrize("path", [TRANSFORMER, "vae/config.json"])
def test_changed_bytes_never_reach_the_cache(hub: Hub, entry: RegisteredCheckpoint, path: str):
    """A file with another checksum than the hub lists, large or small, is deleted and named; the next pull is clean."""
    content = {**SMALL, **LARGE}[path]
    hub.swaps = {path: content[:-1] + b"?"}
    with pytest.raises(DownloadFailed, match=rf"{path} differs from the hub's file.*Run `sd35 pull small` again"):
        pull(entry)
    place = cache.cache_paths(entry)
    assert not place.blob(checksum(path, content)).exists()
    assert not place.partial(checksum(path, content)).exists()
    hub.swaps.clear()
    assert contents(pull(entry))[path] == content


@pytest.mark.usefixtures("hub")
def test_a_file_that_was_cut_short_on_disk_is_fetched_again(entry: RegisteredCheckpoint):
    """A blob of the wrong size is not taken for the file."""
    directory = pull(entry)
    (directory / TRANSFORMER).resolve().write_bytes(b"short")
    assert [file.path for file in plan_download(entry).missing] == [TRANSFORMER]
    assert contents(pull(entry))[TRANSFORMER] == LARGE[TRANSFORMER]


def test_too_little_room_is_told_before_anything_comes(
    hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch
):
    """How much it takes, how much there is, and that HF_HOME may name another disk."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(DownloadFailed, match=r"small needs 0\.00 GB more, and .* has 0\.00 GB free; .*HF_HOME"):
        pull(entry)
    assert hub.asked == []


def test_a_disk_that_fills_up_is_told(hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """While writing, too; what fitted is kept, and gone on from once there is room."""

    def full(out: Any, block: bytes) -> None:
        if out.name == str(part_of(entry)) and out.tell() + len(block) > HALF:
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
def test_a_cache_that_cannot_be_written_to_is_named(entry: RegisteredCheckpoint, tmp_path: Path):
    """HF_HOME below a file: one clear line."""
    (tmp_path / "hub").write_text("a file")
    with pytest.raises(DownloadFailed, match=r"cannot be used \(.*HF_HOME"):
        pull(entry)


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (
            None,
            r"no token was found: accept its licence at .*/someone/small-sd3\.5, create a token at .*/settings/tokens",
        ),
        ("hf_wrong", r"does not accept the token .* create another at .*/settings/tokens"),
        ("hf_other", r"has no access to .*not in the authorized list.*accept its licence at .*/someone/small-sd3\.5"),
    ],
)
def test_who_may_not_read_is_told_why(
    hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch, token: str | None, says: str
):
    """No token, a token that is not known, an account that has not accepted the licence: each its own next step."""
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
            rf"{REPOSITORY} has no revision {'9' * 40}: correct its entry in the file of SD35_REGISTRY",
        ),
        (
            RegisteredCheckpoint("small", "someone/nothing", REVISION),
            r"has no repository someone/nothing, .* correct its entry",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, asked: RegisteredCheckpoint, says: str
):
    """A revision or a repository that is not there."""
    hub.tokens = {"hf_mine"}
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with pytest.raises(DownloadFailed, match=says):
        pull(asked)


def test_a_hub_in_trouble_is_told(hub: Hub, entry: RegisteredCheckpoint):
    """An error of the server's own says to come back later."""
    hub.status = 500
    with pytest.raises(DownloadFailed, match=r"answered with status 500; run `sd35 pull small` again later"):
        pull(entry)


def test_a_repository_of_something_else_is_refused(hub: Hub, entry: RegisteredCheckpoint):
    """Before anything comes, the parts that are not there are named."""
    files = {path: content for path, content in SMALL.items() if not path.startswith("transformer")}
    hub.repositories[REPOSITORY].files = {**files, "unet/config.json": b"{}"}
    with pytest.raises(CheckpointError, match=r"not an SD3\.5 checkpoint in the Diffusers layout: no transformer"):
        pull(entry)
    assert hub.asked == []


@pytest.mark.usefixtures("hub")
def test_a_name_that_cannot_be_looked_up(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """No DNS: the host is named, and what to look at."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        DownloadFailed, match=r"the host name hub\.invalid cannot be resolved .*HF_ENDPOINT, and HTTPS_PROXY"
    ):
        plan_download(entry)


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_not_there(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """Nothing listens: the host is named, and what to look at."""
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1 cannot be reached .*HF_ENDPOINT and HTTPS_PROXY"):
        plan_download(entry)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_proxy_that_fails_is_named(
    entry: RegisteredCheckpoint,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    is_there: bool,  # noqa: FBT001
):
    """Dead, or asking for a password: its address without the password that the variable holds."""
    proxy = hub.url.removeprefix("http://") if is_there else f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{proxy}")
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with pytest.raises(DownloadFailed, match=rf"the proxy {proxy} cannot reach hub\.invalid .*HTTPS_PROXY") as told:
        plan_download(entry)
    assert "secret" not in str(told.value)


@pytest.mark.usefixtures("hub")
def test_the_offline_switch_of_the_library_is_named(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """HF_HUB_OFFLINE, which others set, keeps this from fetching too, and is named."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadFailed, match="HF_HUB_OFFLINE is set"):
        plan_download(entry)


@pytest.mark.parametrize("offline", [False, True])
def test_verify_finds_damage_that_pull_repairs(hub: Hub, entry: RegisteredCheckpoint, offline: bool):  # noqa: FBT001
    """One changed byte in a large or small file, and a file that is gone; online and offline alike."""
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
def test_verify_offline_says_what_it_cannot_know(entry: RegisteredCheckpoint):
    """A file that is no link of the cache's has no checksum on record."""
    path = pull(entry) / "vae/config.json"
    path.unlink()
    path.write_bytes(SMALL["vae/config.json"])
    assert verify_checkpoint(entry, offline=True, on_bytes=lambda _: None).unknown == ("vae/config.json",)
    assert verify_checkpoint(entry, offline=False, on_bytes=lambda _: None).unknown == ()


def test_remove_takes_one_revision_and_says_what_that_freed(hub: Hub, entry: RegisteredCheckpoint):
    """Another revision of the same repository stays whole, with the files that both have; so does a fork."""
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


def test_remove_takes_what_arrived_in_part(hub: Hub, entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """After an interruption, too, nothing is left behind."""
    break_off(hub, monkeypatch)
    with pytest.raises(DownloadFailed):
        pull(entry)
    stored = cache.cache_status(entry).stored_bytes
    assert cache.remove(entry) == stored >= HALF
    assert not cache.cache_paths(entry).repository.exists()


def test_remove_works_on_a_damaged_cache(hub: Hub, entry: RegisteredCheckpoint):
    """A link to a file that someone deleted does not keep the rest on disk; what the library refuses is told."""
    directory = pull(entry)
    (directory / TRANSFORMER).resolve().unlink()
    assert cache.remove(entry) > 0
    assert not directory.exists()
    directory = pull(entry)
    (directory.parent / "stray").touch()
    with pytest.raises(CheckpointError, match=r"is damaged \(.*stray\); delete it by hand"):
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
def test_a_server_that_is_no_hub_is_told(hub: Hub, entry: RegisteredCheckpoint, answer: bytes):
    """Whatever it answers in place of the list, HF_ENDPOINT is named, and no file is asked for."""
    hub.listing = answer
    with pytest.raises((DownloadFailed, CheckpointError), match=r"is HF_ENDPOINT a server of|is not an SD3\.5"):
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
def test_a_list_with_an_unusable_checksum_or_size_is_refused(
    hub: Hub, entry: RegisteredCheckpoint, changed: dict[str, object], says: str
):
    """Both become names and sizes of files in the cache: what is neither is refused before a file is asked for."""
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
    """A call of the system that fails so, naming its file."""

    def refused(path: str | Path, *_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    return refused


@pytest.mark.usefixtures("hub")
def test_remove_says_that_the_file_system_is_read_only(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """What the hub's library lets through becomes one error with the file and the reason."""
    pull(entry)
    monkeypatch.setattr(shutil, "rmtree", refuse(errno.EROFS))
    with pytest.raises(CheckpointError, match=r"small cannot be removed: /.*: Read-only file system$"):
        cache.remove(entry)


@pytest.mark.usefixtures("hub")
def test_remove_deletes_nothing_of_a_cache_that_is_someone_elses(
    entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A directory that cannot be written to is named before anything is deleted; the library's log stays empty."""
    directory = pull(entry)
    blobs = cache.cache_paths(entry).repository / "blobs"
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != blobs and may(path, mode))
    with pytest.raises(CheckpointError, match=rf"small cannot be removed: {blobs} cannot be written to: .*belongs to"):
        cache.remove(entry)
    assert contents(directory) == {**SMALL, **LARGE}
    assert caplog.text == ""


@pytest.mark.usefixtures("hub")
def test_a_cache_that_cannot_be_read_is_named_by_each_command(
    entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch
):
    """Listing, checking and planning a download all look into it."""
    pull(entry)
    stat = Path.stat
    refused = refuse(errno.EACCES)
    monkeypatch.setattr(Path, "stat", lambda path, **how: (refused if REVISION in path.parts else stat)(path, **how))
    with pytest.raises(CheckpointError, match=r"small cannot be looked up in the cache: /.*: Permission denied"):
        cache.cache_status(entry)
    with pytest.raises(CheckpointError, match=r"small cannot be verified: /.*: Permission denied"):
        verify_checkpoint(entry, offline=True, on_bytes=lambda _: None)
    with pytest.raises(DownloadFailed, match=r"/.* cannot be used \(Permission denied\)"):
        plan_download(entry)


@pytest.mark.usefixtures("hub")
def test_a_file_that_cannot_be_read_is_named_by_verify(entry: RegisteredCheckpoint, monkeypatch: pytest.MonkeyPatch):
    """A disk that fails while a checksum is computed."""
    pull(entry)

    monkeypatch.setattr(Path, "open", refuse(errno.EIO))
    with pytest.raises(CheckpointError, match=r"small cannot be verified: /.*: Input/output error"):
        verify_checkpoint(entry, offline=True, on_bytes=lambda _: None)
