"""The `diffusers` backend: PyTorch on a CPU or on CUDA."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sd35.backends.spec import BackendSpec, DeviceSpec, MemoryUse
from sd35.checkpoints.hub.environment import check_import_variables
from sd35.checkpoints.network_sizes import Network

_PLAIN = ("float32", "bfloat16", "float16")
_FP8 = ("fp8", "fp8-storage")  # suggested instead of a wider precision; "fp8-storage" takes less memory
_LOGGERS = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


@contextmanager
def _importing() -> Iterator[None]:
    """Check the environment variables that Transformers reads on import, and silence irrelevant warnings.

    Diffusers imports torchao if it is installed. The warnings are about CUDA extensions that PyTorch for CPUs cannot
    load, a deprecated way to register an enumeration, and names in torchao that this project does not use.
    """
    check_import_variables()
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _extra_bytes(name: str, network: Network, precision: str) -> int:
    """Return the bytes that a network takes beyond two bytes per parameter in float16.

    Only T5 has extra bytes. Transformers keeps the second matrices of its feed-forward layers in float32.
    """
    if (name, precision) != ("text_encoder_3", "float16"):
        return 0
    config = network.config
    # Per value, float32 takes two bytes more than float16.
    return int(2 * config["d_ff"] * config["d_model"] * config["num_layers"])


SPEC = BackendSpec(
    name="diffusers",
    module="sd35.backends.diffusers.backend",
    needs=("torch", "diffusers", "transformers", "accelerate", "torchao"),
    remedy="Install it with: pip install 'sd35-fp8-mirror[diffusers]'",
    devices={
        "cpu": DeviceSpec(
            precisions=(*_PLAIN, "fp8", "fp8-weights", "fp8-storage"),
            offloads=("none", "encoders", "model"),
            memory=MemoryUse(library_bytes=512_000_000, encode=8, step=14, decode=5),
        ),
        "cuda": DeviceSpec(  # its bytes and factors are not measured
            precisions=(*_PLAIN, "fp8", "fp8-dynamic", "fp8-weights", "fp8-storage"),
            default_precision="bfloat16",
            offloads=("none", "encoders", "model", "sequential"),
            memory=MemoryUse(library_bytes=600_000_000, encode=8, step=14, decode=4),
        ),
    },
    importing=_importing,
    can_torch_compile=True,
    extra_bytes=_extra_bytes,
    narrower={"float32": ("bfloat16", *_FP8), "bfloat16": _FP8, "float16": _FP8, "fp8": ("fp8-storage",)},
    can_tile=True,
    widens_fp8=True,
)
