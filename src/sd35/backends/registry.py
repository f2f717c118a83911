"""The table of backends: a new runtime is a new module and one line here. Only the one that is opened is imported."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType, ModuleType

from sd35.backends.base import Backend, Memory
from sd35.backends.options import DeviceKind, Options
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.hub.environment import check_import_variables
from sd35.errors import BackendUnavailable, CheckpointError, InvalidSetting, Sd35Error

_COMPLAINING = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


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
    from sd35.backends.tensorrt.flavour import check

    check()


BACKENDS: Mapping[str, Entry] = MappingProxyType(
    {
        "onnx": Entry("sd35.backends.onnx.backend", ("onnxruntime",), "Install sd35-fp8-mirror anew."),
        "openvino": Entry(
            "sd35.backends.openvino.backend", ("openvino",), "Install it with: pip install 'sd35-fp8-mirror[openvino]'"
        ),
        "diffusers": Entry(
            "sd35.backends.diffusers.backend",
            ("torch", "diffusers", "transformers", "accelerate", "torchao"),
            "Install it with: pip install 'sd35-fp8-mirror[diffusers]'",
        ),
        "tensorrt": Entry(
            "sd35.backends.tensorrt.backend",
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


def backend_module(name: str) -> ModuleType:
    """A backend's module, imported. Raises InvalidSetting, BackendUnavailable."""
    check_available(name)
    if "transformers" in BACKENDS[name].needs:  # it imports the hub's library
        check_import_variables()
    with _without_torchao_complaints():
        return import_module(BACKENDS[name].module)


def memory_of(name: str, device: str) -> tuple[DeviceKind, Memory]:
    """What a backend would compute in on a device, as settings name it; imports the backend.

    Raises InvalidSetting where there is no such backend or device, BackendUnavailable where it cannot run here.
    """
    found: tuple[DeviceKind, Memory] = backend_module(name).memory_of(device)
    return found


def open_backend(name: str, checkpoint: Checkpoint, options: Options) -> Backend:
    """A backend with a checkpoint's weights loaded.

    Raises InvalidSetting where there is no such backend or it cannot honour an option, BackendUnavailable where it
    cannot run here, CheckpointError where the checkpoint lacks what it needs.
    """
    module = backend_module(name)
    try:
        backend: Backend = module.open_backend(checkpoint, options)
    except Sd35Error:
        raise
    except Exception as error:  # whatever a library says of a file it did not expect
        found = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{checkpoint.directory} cannot be loaded by the {name} backend: {found}") from error
    return backend


@contextmanager
def _without_torchao_complaints() -> Iterator[None]:
    """Diffusers imports torchao where it is installed, and both log what is of no consequence here.

    CUDA's own extensions that a CPU's PyTorch cannot load, an enumeration's form of registration, and names that
    Diffusers wants for reading files that torchao wrote, and that torchao no longer has.
    """
    loggers = [logging.getLogger(name) for name in _COMPLAINING]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
