"""Import TensorRT, and check for a GPU. No other module imports TensorRT.

TensorRT has two flavours with the same API: standard TensorRT and TensorRT-RTX. Importing this module imports neither
flavour and does not access the GPU.
"""

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

from sd35.backends.tensorrt.types import TensorRt
from sd35.errors import BackendUnavailable

# In order of preference. The extra `tensorrt` installs `tensorrt_rtx`. If `tensorrt` is there, someone has chosen it.
_MODULES = ("tensorrt", "tensorrt_rtx")
_LIBRARY_REMEDY = (
    "Install TensorRT-RTX with: pip install 'sd35-fp8-mirror[tensorrt]'; for a data centre GPU, install standard"
    " TensorRT with: pip install tensorrt"
)
_GPU_REMEDY = (
    "TensorRT needs an NVIDIA GPU and its driver (in a container, run with --gpus all). Without a GPU, choose another"
    " --backend; `sd35 doctor` lists them"
)
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Flavour:
    """An imported TensorRT. `name` is the name of its module: "tensorrt" or "tensorrt_rtx"."""

    name: str
    version: str
    trt: TensorRt

    @cached_property
    def log(self) -> "Log":
        """The logger that all of TensorRT's objects share."""
        return new_log(self.trt)

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX, which can build for other GPUs and has a cache of compiled kernels."""
        return self.name == "tensorrt_rtx"


class Log(Protocol):
    """A logger for TensorRT that also collects errors, for the messages of exceptions."""

    def take_errors(self) -> str:
        """Return the errors since the last call as one line."""


def new_log(trt: TensorRt) -> Log:
    """Create a logger that forwards messages to Python's logger "sd35.tensorrt"."""
    severities = {trt.ILogger.WARNING: logging.WARNING}
    severities |= dict.fromkeys((trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR), logging.ERROR)

    base: type[Any] = trt.ILogger

    class CollectingLog(base):  # type: ignore[misc]  # here, because the base is only known after the import
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 requires a direct call instead of super()
            self._errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            """Forward a message. TensorRT calls this method."""
            level = severities.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                self._errors.append(message)
            logging.getLogger("sd35.tensorrt").log(level, "%s", message)

        def take_errors(self) -> str:
            """Return the errors since the last call as one line."""
            errors, self._errors = self._errors, []
            return "; ".join(errors)

    return CollectingLog()


def find_flavour() -> Flavour:
    """Import TensorRT. Raises BackendUnavailable if it is not installed or cannot be loaded."""
    reasons = []
    for name in _MODULES:
        if find_spec(name) is None:
            continue
        try:
            module = import_module(name)
            return Flavour(name, str(module.__version__), cast("TensorRt", module))
        except (ImportError, OSError, RuntimeError, AttributeError) as error:  # from loading its shared libraries
            reasons.append(f"{name} is installed but cannot be loaded ({type(error).__name__}: {error})")
    raise BackendUnavailable("tensorrt", "; ".join(reasons) or "TensorRT is not installed", f"{_LIBRARY_REMEDY}.")


def gpu_architectures() -> list[str]:
    """Return the architecture of each GPU, such as "sm89", from NVIDIA's driver. Empty without a GPU or a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0):  # the driver's functions return 0 on success
            return []
        count = ctypes.c_int()
        if driver.cuDeviceGetCount(ctypes.byref(count)):
            return []
        return [_architecture(driver, index) for index in range(count.value)]
    except (OSError, AttributeError):  # there is no driver, or it lacks a function
        return []


def check() -> None:
    """Check for TensorRT and a GPU. Raises BackendUnavailable if the library, the GPU or both are missing."""
    reasons, remedies = [], []
    try:
        find_flavour()
    except BackendUnavailable as error:
        reasons.append(error.reason)
        remedies.append(_LIBRARY_REMEDY)
    if not gpu_architectures():
        reasons.append("there is no NVIDIA GPU, or no driver for it")
        remedies.append(_GPU_REMEDY)
    if reasons:
        raise BackendUnavailable("tensorrt", "; ".join(reasons), f"{'. '.join(remedies)}.")


def known_architectures(flavour: Flavour) -> Sequence[str]:
    """Return the GPU architectures that TensorRT-RTX supports, such as "sm89".

    Empty for standard TensorRT, which does not list them and builds only for the GPU of this machine.
    """
    if not flavour.is_rtx:
        return ()
    return [name.lower() for name in flavour.trt.ComputeCapability.__members__ if name.startswith("SM")]


def _architecture(driver: ctypes.CDLL, index: int) -> str:
    """Return the architecture of a GPU, such as "sm89" for the compute capability 8.9."""
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)  # a device's handle is its index
        numbers.append(value.value)
    return "sm{}{}".format(*numbers)
