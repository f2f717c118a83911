"""The checkpoint `auto`: the choice by memory, weights on disk and token, and its messages."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session
from structlog.testing import capture_logs

from sd35.checkpoints.hub import cache
from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED, find_registered
from sd35.errors import CheckpointError, DoesNotFit, InvalidSetting
from sd35.planning.auto import choose, why_standing_in
from sd35.planning.fit import placement_of, plan_for
from sd35.planning.plan import AvailableMemory
from sd35.service.startup_times import StartupTimes
from sd35.settings import Settings, load_settings
from sd35.startup import open_checkpoints, open_model_pool
from tests.support.hub_server import Hub, Repository, serving, use

GIB = 2**30
BIG, MIDDLE, SMALL = (AvailableMemory("cuda", size * GIB, 64 * GIB) for size in (80, 12, 1))
TOKEN = "hf_mine"  # noqa: S105  known to the test's own server


@pytest.fixture(scope="module")
def _server() -> Iterator[Hub]:
    with serving() as hub:
        hub.tokens = {TOKEN}
        yield hub


@pytest.fixture
def hub(_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the embedded model's files as Large and Medium, which need the token. The cache is empty."""
    directory = open_checkpoint(EMBEDDED).directory
    files = {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}
    for name in ("sd3.5-large", "sd3.5-medium"):
        registered = find_registered(name, None)
        _server.repositories[registered.repository] = Repository(files, registered.revision, readers={TOKEN})
    _server.asked.clear()
    use(_server, tmp_path, monkeypatch)
    yield _server
    close_session()


def settings(**more: object) -> Settings:
    """Return settings with the checkpoint `auto`."""
    return load_settings({"checkpoints": ("auto",), "backend": "diffusers", **more})


def put_on_disk(name: str) -> None:
    """Put the embedded model's files in the cache, as if `name` had been downloaded."""
    snapshot = cache.cache_paths(find_registered(name, None)).snapshot
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(open_checkpoint(EMBEDDED).directory, target_is_directory=True)


@pytest.mark.parametrize(
    ("available", "chosen"), [(BIG, "sd3.5-large"), (MIDDLE, "sd3.5-medium")], ids=["80GiB", "12GiB"]
)
def test_memory_decides(hub: Hub, monkeypatch: pytest.MonkeyPatch, available: AvailableMemory, chosen: str):
    """With a token for both, the best checkpoint that fits without sequential offload is downloaded and chosen."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert choose(settings(), available) == chosen
    assert cache.cache_status(find_registered(chosen, None)).is_complete
    assert hub.asked


def test_weights_decide_without_a_token(hub: Hub):
    """A checkpoint on disk is chosen over a better one that cannot be downloaded."""
    put_on_disk("sd3.5-medium")
    assert choose(settings(), BIG) == "sd3.5-medium"
    put_on_disk("sd3.5-large")
    assert choose(settings(), BIG) == "sd3.5-large"
    assert hub.asked == []


def test_a_checkpoint_that_refuses_the_token_is_passed_over(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """If the token does not give access to Large, Medium is chosen."""
    hub.repositories[find_registered("sd3.5-large", None).repository].readers = set()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert choose(settings(), BIG) == "sd3.5-medium"


@pytest.mark.parametrize(
    ("available", "more", "why"),
    [
        (BIG, {}, "no token to download it"),
        (BIG, {"offline": True}, "the setting offline is on"),
        (BIG, {"backend": "onnx"}, "not on disk"),
        (SMALL, {}, "not on disk"),
    ],
)
def test_without_weights_and_token_the_embedded_model_is_used(
    hub: Hub, available: AvailableMemory, more: dict[str, object], why: str
):
    """A warning says why neither of the two is served, and has a remedy. The hub receives no request."""
    with capture_logs() as logs:
        assert choose(settings(**more), available) == EMBEDDED
    (warning,) = (entry for entry in logs if entry["log_level"] == "warning")
    assert "HF_TOKEN" in warning["remedy"]
    for name, passed_over in zip(("sd3.5-large", "sd3.5-medium"), warning["passed_over"], strict=True):
        assert passed_over.startswith(f"{name}: ")
        assert why in passed_over
    assert hub.asked == []


def test_the_embedded_model_is_not_used_if_downloads_are_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch):  # noqa: ARG001
    """If both repositories refuse the token, the error has the obstacle of each."""
    monkeypatch.setenv("HF_TOKEN", "hf_someone")
    with pytest.raises(CheckpointError, match=r"sd3\.5-large: .*token.*; sd3\.5-medium: .*token"):
        choose(settings(), BIG)


def test_a_token_may_be_a_mounted_secret(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The token is read from the file at HF_TOKEN_PATH. A file that cannot be read is an error."""
    secret = tmp_path / "hf_token"
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(secret))
    secret.write_text(f"{TOKEN}\n")
    assert choose(settings(), BIG) == "sd3.5-large"
    assert hub.asked
    cache.remove(find_registered("sd3.5-large", None))
    secret.unlink()
    secret.mkdir()
    with pytest.raises(InvalidSetting, match=r"the token's file .*hf_token cannot be read: Is a directory"):
        choose(settings(), BIG)


def test_an_embedded_model_that_is_also_named_is_served_once(hub: Hub):  # noqa: ARG001
    """If `auto` chooses a model that settings also name, it is served once and counts as named."""
    both = settings(checkpoints=("auto", EMBEDDED), offline=True)
    assert [checkpoint.name for checkpoint in open_checkpoints(both)] == [EMBEDDED]
    assert why_standing_in(both, EMBEDDED) is None
    assert why_standing_in(settings(), EMBEDDED)


def test_the_error_has_the_needed_memory(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """It also has the available memory."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    message = r"sd3.5-large: it needs .* GiB of host memory, but only 512 MiB and 64.0 GiB are available"
    with pytest.raises(CheckpointError, match=message):
        choose(settings(), AvailableMemory("cuda", GIB // 2, 64 * GIB))
    assert hub.asked == []


def test_a_named_checkpoint_is_never_replaced(hub: Hub, monkeypatch: pytest.MonkeyPatch):  # noqa: ARG001
    """If settings name Large, Medium on disk is not used instead."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    put_on_disk("sd3.5-medium")
    with pytest.raises(CheckpointError, match=r"sd3\.5-large is not on disk"):
        open_checkpoints(settings(checkpoints=("sd3.5-large",)))


def test_a_model_pool_that_does_not_fit_is_refused_with_the_plan():
    """Nothing is loaded. The error has the size of each network and all placements."""
    small = load_settings({"ram": "150MiB"})
    with pytest.raises(DoesNotFit) as found:
        open_model_pool(small, open_checkpoints(small))
    for words in ("sd35-mini does not fit in memory", "transformer", "Does not fit", "of 150 MiB", "encoders"):
        assert words in str(found.value)


def test_a_model_pool_is_opened_as_planned():
    """The pool has the planned offload, and records the start-up time of each phase."""
    checkpoints, settings = open_checkpoints(load_settings()), load_settings({"ram": "1GiB"})
    plan = plan_for(settings, [network_sizes_on_disk(each) for each in checkpoints], AvailableMemory("cpu", GIB, GIB))
    assert placement_of(plan).offload == "none"
    startup = StartupTimes(0.25)
    with open_model_pool(load_settings({"ram": "1GiB", "offload": "encoders"}), checkpoints, startup):
        pass
    assert {"import", "plan", "compile", "warm"} <= startup.seconds.keys()
    assert startup.seconds["import"] >= 0.25
    assert all(took_s >= 0 for took_s in startup.seconds.values())
