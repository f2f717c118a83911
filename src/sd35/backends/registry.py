"""The registry of backends. A new backend is a package with a `spec` module, and one line here.

Importing the specs imports no runtime such as PyTorch. Opening a backend imports the runtime of that backend only.
"""

from importlib import import_module
from types import ModuleType

from sd35.backends.base import CHECK_FILES, Backend, Memory
from sd35.backends.options import DeviceKind, Options
from sd35.backends.spec import BackendSpec
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import BackendUnavailable, CheckpointError, InvalidSetting, Sd35Error

_PACKAGES = (  # in order of preference, which decides if no setting names a backend
    "sd35.backends.onnx",
    "sd35.backends.openvino",
    "sd35.backends.diffusers",
    "sd35.backends.tensorrt",
)
_SPECS: tuple[BackendSpec, ...] = tuple(import_module(f"{package}.spec").SPEC for package in _PACKAGES)
BACKENDS: dict[str, BackendSpec] = {spec.name: spec for spec in _SPECS}
"""The backends by name. Code outside this package can register its own backend by adding a spec to this dict."""


def check_available(name: str, setting: str = "backend") -> None:
    """Check that a backend exists and can run on this machine. Imports no runtime.

    Args:
        name: The name of the backend.
        setting: The setting that contains the name, for the error.

    Raises:
        InvalidSetting: The backend does not exist.
        BackendUnavailable: The backend cannot run on this machine.
    """
    if name not in BACKENDS:
        raise InvalidSetting(f"{setting}: got {name!r}; allowed: {', '.join(BACKENDS)}")
    spec = BACKENDS[name]
    if missing := spec.missing:
        raise BackendUnavailable(name, f"it needs packages that are not installed ({', '.join(missing)})", spec.remedy)
    spec.check()


def backend_module(name: str) -> ModuleType:
    """Import a backend's module.

    Raises the errors of `check_available`, and InvalidSetting if an environment variable would make the import fail.
    """
    check_available(name)
    with BACKENDS[name].importing():
        return import_module(BACKENDS[name].module)


def memory_of(name: str, device: str) -> tuple[DeviceKind, Memory]:
    """Return the kind of device that a backend computes on, and the device's memory. Imports the backend.

    `device` is the value of the setting `device`, such as "auto".

    Raises:
        InvalidSetting: The backend does not exist or does not support the device.
        BackendUnavailable: The backend cannot run on this machine, or the device is missing.
    """
    kind_and_memory: tuple[DeviceKind, Memory] = backend_module(name).memory_of(device)
    return kind_and_memory


def open_backend(name: str, checkpoint: Checkpoint, options: Options) -> Backend:
    """Open a backend and load a checkpoint's weights.

    Raises InvalidSetting if the backend does not exist or does not support an option, BackendUnavailable if it cannot
    run here, CheckpointError if files that it needs are missing or damaged.
    """
    module, spec = backend_module(name), BACKENDS[name]
    kind, _ = module.memory_of(options.device)
    spec.check_options(options, kind)
    try:
        backend: Backend = module.open_backend(checkpoint, options)
    except Sd35Error:
        raise
    except Exception as error:  # libraries raise many types of errors for invalid files
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{checkpoint.directory} cannot be loaded by the {name} backend ({reason}); {CHECK_FILES}"
        ) from error
    return backend
