"""The one module that imports TensorRT: the standard one or TensorRT-RTX, whichever is there. Their API is the same.

And what of it, and of a GPU, is missing here. Neither is imported or asked for before it is wanted.
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

_MODULES = ("tensorrt", "tensorrt_rtx")  # who installed the former, which is for data centres' GPUs, did so on purpose
_GET_LIBRARY = (
    "Install TensorRT-RTX with: pip install 'sd35-fp8-mirror[tensorrt]'; for a data centre's GPU, NVIDIA's tensorrt"
)
_GET_GPU = (
    "It computes on an NVIDIA GPU alone, which a container sees with --gpus all; elsewhere, choose another --backend:"
    " sd35 doctor lists them"
)
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Flavour:
    """A TensorRT that was imported; `name` is its module's, "tensorrt" or "tensorrt_rtx"."""

    name: str
    version: str
    trt: TensorRt

    @cached_property
    def log(self) -> "Log":
        """Where it says what is wrong; TensorRT wants one for all that it makes."""
        return log_of(self.trt)

    @property
    def is_rtx(self) -> bool:
        """Whether it builds for other machines' GPUs, finishes its kernels on the GPU and keeps them in a cache."""
        return self.name == "tensorrt_rtx"


class Log(Protocol):
    """A logger for TensorRT, which also collects the errors for the exceptions of this project."""

    def take_errors(self) -> str:
        """Return the errors since the last call, in one line."""


def log_of(trt: TensorRt) -> Log:
    """A new one; warnings and errors go to Python's logging, as "sd35.tensorrt"."""
    severities = {trt.ILogger.WARNING: logging.WARNING}
    severities |= dict.fromkeys((trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR), logging.ERROR)

    base: type[Any] = trt.ILogger

    class Kept(base):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            level = severities.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                self._errors.append(message)
            logging.getLogger("sd35.tensorrt").log(level, "%s", message)

        def take_errors(self) -> str:
            errors, self._errors = self._errors, []
            return "; ".join(errors)

    return Kept()


def find_flavour() -> Flavour:
    """Raises BackendUnavailable where there is no TensorRT, or it cannot be loaded."""
    trouble = []
    for name in _MODULES:
        if find_spec(name) is None:
            continue
        try:
            module = import_module(name)
            return Flavour(name, str(module.__version__), cast("TensorRt", module))
        except (ImportError, OSError, RuntimeError, AttributeError) as error:  # its libraries are loaded, or not found
            trouble.append(f"{name} is installed and cannot be loaded ({type(error).__name__}: {error})")
    raise BackendUnavailable("tensorrt", "; ".join(trouble) or "TensorRT is not installed", f"{_GET_LIBRARY}.")


def gpu_architectures() -> list[str]:
    """Of each GPU of this machine, as "sm89"; asked of NVIDIA's driver. Empty where there is none, or no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0):
            return []
        count = ctypes.c_int()
        if driver.cuDeviceGetCount(ctypes.byref(count)):
            return []
        return [_architecture(driver, index) for index in range(count.value)]
    except (OSError, AttributeError):
        return []


def check() -> None:
    """Raises BackendUnavailable, naming all that is missing: the library, the GPU, or both."""
    lacking, remedies = [], []
    try:
        find_flavour()
    except BackendUnavailable as error:
        lacking.append(error.reason)
        remedies.append(_GET_LIBRARY)
    if not gpu_architectures():
        lacking.append("there is no NVIDIA GPU, or no driver for it")
        remedies.append(_GET_GPU)
    if lacking:
        raise BackendUnavailable("tensorrt", "; ".join(lacking), f"{'. '.join(remedies)}.")


def known_architectures(flavour: Flavour) -> Sequence[str]:
    """What a flavour builds engines for without having the GPU; the standard one, for none."""
    if not flavour.is_rtx:
        return ()
    return [name.lower() for name in flavour.trt.ComputeCapability.__members__ if name.startswith("SM")]


def _architecture(driver: ctypes.CDLL, index: int) -> str:
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)  # the ordinal is the device's handle
        numbers.append(value.value)
    return "sm{}{}".format(*numbers)
