"""The memory of a CUDA device, as PyTorch's allocator gives it out. Needs torch."""

import torch


class CudaMemory:
    """See `sd35.backends.base.Memory`. Not run yet."""

    is_host = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held_bytes = 0

    def free_bytes(self) -> int:
        """What the device has free, and what PyTorch holds unused."""
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return torch.cuda.mem_get_info(self._device)[0] + unused

    def held_bytes(self) -> int:
        """What PyTorch holds, used or not."""
        return torch.cuda.memory_reserved(self._device)

    def watch(self) -> None:
        """Start to measure the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._held_bytes = torch.cuda.memory_allocated(self._device)

    def peak_bytes(self) -> int:
        """The peak's rise since `watch`."""
        return torch.cuda.max_memory_allocated(self._device) - self._held_bytes
