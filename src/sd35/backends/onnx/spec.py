"""The `onnx` backend: ONNX Runtime on a CPU."""

from sd35.backends.spec import BackendSpec, DeviceSpec, MemoryUse

SPEC = BackendSpec(
    name="onnx",
    module="sd35.backends.onnx.backend",
    needs=("onnxruntime",),
    remedy="Reinstall sd35-fp8-mirror.",
    devices={
        "cpu": DeviceSpec(
            precisions=("float32", "bfloat16", "fp8"),
            offloads=("none", "encoders"),
            memory=MemoryUse(library_bytes=187_000_000, encode=8, step=14, decode=4),
        )
    },
    needs_graphs=True,
    loads_as="float32",  # ONNX Runtime converts BF16 and FP8 weights while it loads them on a CPU
    casts_in_place=True,
)
