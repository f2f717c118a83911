"""The table of backends: a new runtime is a new module and one line here. Only the one that is opened is imported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

from sd35.backends.contract import Backend, Memory
from sd35.backends.footprint import DeviceKind
from sd35.backends.options import Options
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import BackendUnavailable, CheckpointError, InvalidSetting, Sd35Error


@dataclass(frozen=True)
class Entry:
    """Where a backend lies: `module` imports the `needs` at its top.

    It has `open_backend(checkpoint, options)` and `memory_of(device)`. `check` raises BackendUnavailable where more is
    missing than can be looked up by name.
    """

    module: str
    needs: tuple[str, ...]
    remedy: str
    check: Callable[[], None] = lambda: None

    @property
    def missing(self) -> list[str]:
        """What it needs and is not installed; looks, but imports nothing."""
        return [name for name in self.needs if find_spec(name) is None]


def _check_tensorrt() -> None:
    from sd35.backends.tensorrt_flavour import check

    check()


BACKENDS: Mapping[str, Entry] = MappingProxyType(
    {
        "onnx": Entry("sd35.backends.onnx", ("onnxruntime",), "Install sd35-fp8-mirror anew."),
        "diffusers": Entry(
            "sd35.backends.diffusers",
            ("torch", "diffusers", "transformers", "accelerate"),
            "Install it with: pip install 'sd35-fp8-mirror[diffusers]'",
        ),
        "tensorrt": Entry(
            "sd35.backends.tensorrt",
            ("torch",),
            "Install it with: pip install 'sd35-fp8-mirror[tensorrt]'",
            _check_tensorrt,
        ),
    }
)


def check_available(name: str, setting: str = "backend") -> None:
    """Raises InvalidSetting where there is no such backend, BackendUnavailable where what it needs is missing."""
    if name not in BACKENDS:
        raise InvalidSetting(f"{setting}: got {name!r}; allowed: {', '.join(BACKENDS)}")
    entry = BACKENDS[name]
    if missing := entry.missing:
        raise BackendUnavailable(name, f"{', '.join(missing)} not installed", entry.remedy)
    entry.check()


def memory_of(name: str, device: str) -> tuple[DeviceKind, Memory]:
    """What a backend would compute in on a device, as settings name it; imports the backend.

    Raises InvalidSetting where there is no such backend or device, BackendUnavailable where it cannot run here.
    """
    check_available(name)
    found: tuple[DeviceKind, Memory] = import_module(BACKENDS[name].module).memory_of(device)
    return found


def open_backend(name: str, checkpoint: Checkpoint, options: Options) -> Backend:
    """A backend with a checkpoint's weights loaded.

    Raises InvalidSetting where there is no such backend or it cannot honour an option, BackendUnavailable where it
    cannot run here, CheckpointError where the checkpoint lacks what it needs.
    """
    check_available(name)
    try:
        backend: Backend = import_module(BACKENDS[name].module).open_backend(checkpoint, options)
    except Sd35Error:
        raise
    except Exception as error:  # whatever a library says of a file it did not expect
        found = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{checkpoint.directory} cannot be loaded by the {name} backend: {found}") from error
    return backend
