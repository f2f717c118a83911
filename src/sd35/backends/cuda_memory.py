"""The memory of a CUDA device, as PyTorch's allocator reports it. Needs torch."""

import torch


class CudaMemory:
    """Implements `sd35.backends.base.Memory`. Not run on a GPU yet."""

    is_host = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held_bytes = 0

    def free_bytes(self) -> int:
        """Return the device's free memory plus what PyTorch has reserved but does not use."""
        unused_bytes = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        free_bytes, _total_bytes = torch.cuda.mem_get_info(self._device)
        return free_bytes + unused_bytes

    def held_bytes(self) -> int:
        """Return the memory that PyTorch has reserved, used or not."""
        return torch.cuda.memory_reserved(self._device)

    def watch(self) -> None:
        """Start measuring the peak of the allocated memory."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._held_bytes = torch.cuda.memory_allocated(self._device)

    def peak_bytes(self) -> int:
        """Return the peak since `watch`, minus the memory that was allocated at that time."""
        return torch.cuda.max_memory_allocated(self._device) - self._held_bytes
