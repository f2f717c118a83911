"""The `tensorrt` backend: TensorRT engines on an NVIDIA GPU."""

from sd35.backends.spec import BackendSpec, DeviceSpec, MemoryUse
from sd35.backends.tensorrt.flavour import check

SPEC = BackendSpec(
    name="tensorrt",
    module="sd35.backends.tensorrt.backend",
    needs=("torch",),
    remedy="Install it with: pip install 'sd35-fp8-mirror[tensorrt]'",
    devices={
        "cuda": DeviceSpec(  # its bytes and factors are not measured
            precisions=("float32", "bfloat16", "fp8"),
            default_precision="bfloat16",
            offloads=("none", "sequential"),  # engines stream the weights that do not fit
            memory=MemoryUse(library_bytes=600_000_000, encode=8, step=14, decode=4),
        )
    },
    check=check,
)
