"""Networks that are read from disk when they are called and freed for the next: saves memory on a CPU, takes time."""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from sd35.backends.base import Memory


def weights_of(network: nn.Module) -> Iterator[Tensor]:
    """Parameters, and what else a network holds: the transformer's table of positions is a buffer, and large."""
    yield from network.parameters()
    yield from network.buffers()


def bytes_of(weights: Iterable[Tensor]) -> int:
    """What tensors take. One that is quantised counts as what it stands for, and is made of others."""
    parts = (
        [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
        if hasattr(weight, "__tensor_flatten__")
        else [weight]
        for weight in weights
    )
    return sum(tensor.nbytes for tensors in parts for tensor in tensors)


class SequentialOffload:
    """Keeps at most one of several networks in memory. `read` reads one from disk by its name. Not thread-safe."""

    def __init__(self, names: Iterable[str], read: Callable[[str], nn.Module], dtype: object) -> None:
        self._read = read
        self._name = ""
        self._network: nn.Module | None = None
        self.lazy_networks = {name: LazyNetwork(self, name, dtype) for name in names}

    @property
    def held_bytes(self) -> int:
        """The size of the weights in memory."""
        return bytes_of(weights_of(self._network)) if self._network else 0

    def load(self, name: str) -> nn.Module:
        """Return the network, after freeing the one in memory if it is another."""
        if self._name != name or self._network is None:
            self.free()
            self._network = self._read(name)
            self._name = name
        return self._network

    def free(self) -> None:
        """Free the network in memory. On Linux, the allocator also returns the memory to the system."""
        self._network = None
        gc.collect()  # networks are full of cycles
        if sys.platform == "linux":
            with suppress(OSError, AttributeError):  # another C library than glibc
                ctypes.CDLL(None).malloc_trim(0)


class LazyNetwork:
    """Stands in for a network in a pipeline: a call loads the network and passes on to it.

    `dtype` is known without loading, because pipelines ask one network for the type of another's inputs.
    """

    def __init__(self, offload: SequentialOffload, name: str, dtype: object) -> None:
        self._offload, self._name, self.dtype = offload, name, dtype

    def __call__(self, *arguments: object, **named: object) -> Any:  # noqa: ANN401  whatever a network answers
        """Call the network."""
        return self._offload.load(self._name)(*arguments, **named)

    def decode(self, *arguments: object, **named: object) -> Any:  # noqa: ANN401  see above
        """Call the autoencoder's decoder."""
        network: Any = self._offload.load(self._name)
        return network.decode(*arguments, **named)


class WorkingMemory:
    """A memory whose peaks are without the weights that came meanwhile: what is left is what a call works in."""

    def __init__(self, memory: Memory, weights_bytes: Callable[[], int]) -> None:
        self._memory, self._weights_bytes = memory, weights_bytes
        self.is_host = memory.is_host
        self._held_bytes = 0

    def free_bytes(self) -> int:
        """How much more this process can take now."""
        return self._memory.free_bytes()

    def held_bytes(self) -> int:
        """What this process holds now."""
        return self._memory.held_bytes()

    def watch(self) -> None:
        """Start to measure the peak."""
        self._memory.watch()
        self._held_bytes = self._weights_bytes()

    def peak_bytes(self) -> int:
        """The most that was taken at once since `watch`, beyond what was held then and the weights that came."""
        return max(0, self._memory.peak_bytes() - max(0, self._weights_bytes() - self._held_bytes))
