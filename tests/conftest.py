"""Fixtures for all tests, and the distribution of tests over processes."""

import logging
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings
from sqlalchemy import URL

from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.generation.model_pool import ModelPool
from tests.support import postgres
from tests.support.fake_backend import FakeBackend, fake_pool

# Background jobs of a shell script ignore SIGINT, and so do their children. Tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# No deadline: the time of an example depends on other processes of the machine.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
_SHARED_BY_FILES = ("compiled", "watched")  # session fixtures that take many seconds to build


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests of a file, and all tests that share an expensive fixture, for pytest-xdist.

    A group runs in one process, so that no expensive fixture is built twice.
    """
    for item in items:
        shared = [name for name in _SHARED_BY_FILES if name in getattr(item, "fixturenames", ())]
        item.add_marker(pytest.mark.xdist_group(shared[0] if shared else item.path.as_posix()))


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Compute with one PyTorch thread: several threads wait by spinning, which slows down other processes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _separate_data_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set a temporary data directory for processes that are started without `--data-dir`."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True)
def _default_logs() -> Iterator[None]:
    """Reset logging after each test: the service, its commands and the library configure it for the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[URL]:
    """The URL of a PostgreSQL server. Skips the test if PostgreSQL is not installed."""
    with postgres.serving() as server:
        yield server


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory with the graphs of the embedded checkpoint in FP32, BF16 and FP8."""
    from sd35.compile.calibration_run import CalibrationRequest
    from sd35.compile.fp8 import build_fp8
    from sd35.compile.graphs import build_graphs
    from sd35.compile.prompts import calibration_prompts, evaluation_prompts
    from sd35.compile.reference_sampling import recipe_of
    from sd35.compile.stages import Stages

    cache_dir = tmp_path_factory.mktemp("cache")
    checkpoint, stages = open_checkpoint(EMBEDDED), Stages(lambda *_: None)
    for precision in ("fp32", "bf16"):
        graphs = build_graphs(checkpoint, precision, cache_dir, stages)
    graphs = build_graphs(checkpoint, "fp8", cache_dir, stages)
    prompts = calibration_prompts(checkpoint)[:4], evaluation_prompts(checkpoint)[:4]
    small = replace(recipe_of(checkpoint), width_px=64, height_px=64)
    build_fp8(checkpoint, graphs, CalibrationRequest(small, *prompts), stages)
    return cache_dir


@pytest.fixture
def backend() -> FakeBackend:
    """The backend of `pool`."""
    return FakeBackend()


@pytest.fixture
def max_in_flight() -> int:
    """The limit of images in flight of `pool`."""
    return 3


@pytest.fixture
def pool(tmp_path: Path, backend: FakeBackend, max_in_flight: int) -> Iterator[ModelPool]:
    """A model pool with `backend`. Held images are released at the end."""
    with fake_pool(tmp_path, backend, max_in_flight) as pool:
        yield pool
        backend.release.set()
