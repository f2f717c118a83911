"""Compare the rate of a denoising step with that of a plain product of matrices, and list what takes the step's time.

The rate is measured in the same run, with matrix products (GEMMs) of the model's shapes. The fastest of NumPy, PyTorch
and ONNX Runtime counts. PyTorch counts the floating-point operations of a step: all matrix products, including those of
attention.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from diffusers import SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.outcome import Bar, Outcome
from sd35.backends.graphs.backend import Graph, GraphBackend
from sd35.backends.onnx.backend import session_options
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.host import cores

BACKENDS = ("onnx", "openvino")
ROWS, SIDE_PX = (8, 16), 128
MIN_SHARE = 0.7
_REPEATS = 5  # calls per sample


def measure(checkpoint: Path, rounds: int) -> Outcome:
    """Measure the share for each backend and number of rows. Steps and plain matrix products alternate."""
    opened = open_checkpoint(str(checkpoint))
    transformers = {name: _transformer(name, opened) for name in BACKENDS}
    network = SD3Transformer2DModel.from_pretrained(checkpoint / "transformer").eval()
    torch.set_num_threads(cores())
    bars: list[Bar] = []
    notes: list[str] = []
    samples: dict[str, Any] = {}
    for rows in ROWS:
        inputs = _inputs(network, rows)
        flops = _flops(network, inputs)
        shapes = _gemm_shapes(network, inputs)
        gemm_flops = sum(2 * m * k * n * times for (m, k, n), times in shapes.items())
        step_s: dict[str, list[float]] = {name: [] for name in transformers}
        gemm_s: dict[str, list[float]] = {name: [] for name in _GEMMS}
        for _ in range(rounds):
            for name, transformer in transformers.items():
                step_s[name].append(_fastest(partial(transformer.run, ["latent"], inputs)))
            for name, run_all in _GEMMS.items():
                gemm_s[name].append(_fastest(run_all(shapes)))
        gemm_rate = gemm_flops / min(median(samples_s) for samples_s in gemm_s.values())
        rates = ", ".join(f"{name} {gemm_flops / median(s) / 1e9:.0f}" for name, s in gemm_s.items())
        notes.append(f"{rows} rows: {flops / 1e9:.1f} GFLOP; plain GEMMs, GFLOP/s: {rates}")
        for name, samples_s in step_s.items():
            rate = flops / median(samples_s)
            bars.append(Bar(f"share of the GEMM rate, {name}, {rows} rows", rate / gemm_rate, "", ">=", MIN_SHARE))
            notes.append(f"{rows} rows, {name}: {1000 * median(samples_s):.1f} ms, {rate / 1e9:.0f} GFLOP/s")
        samples[str(rows)] = {"flops": flops, "step_s": step_s, "gemm_s": gemm_s}
    notes += _breakdown(checkpoint, _inputs(network, ROWS[0]))
    return Outcome(bars, notes, samples)


def _transformer(name: str, checkpoint: Checkpoint) -> Graph:
    """Open a backend and return the graph of its transformer."""
    backend = open_backend(name, checkpoint, Options())
    assert isinstance(backend, GraphBackend)
    return backend._transformer  # noqa: SLF001  to time the network alone


def _inputs(network: SD3Transformer2DModel, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return random inputs of the transformer by name, for `rows` images of `SIDE_PX` and 36 text tokens."""
    rng, config, side = np.random.default_rng(0), network.config, SIDE_PX // 8
    shapes = {
        "hidden_states": (rows, 16, side, side),
        "encoder_hidden_states": (rows, 36, config.joint_attention_dim),
        "pooled_projections": (rows, config.pooled_projection_dim),
        "timestep": (rows,),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _call(network: SD3Transformer2DModel, inputs: dict[str, np.ndarray[Any, Any]]) -> None:
    """Run the network in PyTorch and discard its output."""
    with torch.no_grad():
        network(**{name: torch.from_numpy(array) for name, array in inputs.items()})


def _flops(network: SD3Transformer2DModel, inputs: dict[str, np.ndarray[Any, Any]]) -> int:
    """Return the number of floating-point operations of a step."""
    counter = FlopCounterMode(display=False)
    with counter:
        _call(network, inputs)
    return int(counter.get_total_flops())


def _gemm_shapes(
    network: SD3Transformer2DModel, inputs: dict[str, np.ndarray[Any, Any]]
) -> Counter[tuple[int, int, int]]:
    """Return the number of linear layers for each shape (m, k, n) of matrix product."""
    counts: Counter[tuple[int, int, int]] = Counter()

    def count_shape(layer: torch.nn.Linear, received: tuple[torch.Tensor, ...], _: object) -> None:
        m = received[0].numel() // layer.in_features  # rows of the input
        counts[m, layer.in_features, layer.out_features] += 1

    linears = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count_shape) for layer in linears]
    _call(network, inputs)
    for hook in hooks:
        hook.remove()
    return counts


def _matrices(m: int, k: int, n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return two random matrices, of m x k and k x n numbers."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)


def _numpy_gemms(shapes: Counter[tuple[int, int, int]]) -> Callable[[], object]:
    """Return a function that computes all products with NumPy, each as often as `shapes` counts it."""
    pairs = [(_matrices(*shape), times) for shape, times in shapes.items()]
    return lambda: [a @ b for (a, b), times in pairs for _ in range(times)]


def _torch_gemms(shapes: Counter[tuple[int, int, int]]) -> Callable[[], object]:
    """Return a function that computes all products with PyTorch, each as often as `shapes` counts it."""
    pairs = [(tuple(map(torch.from_numpy, _matrices(*shape))), times) for shape, times in shapes.items()]
    return lambda: [a @ b for (a, b), times in pairs for _ in range(times)]


def _onnx_gemms(shapes: Counter[tuple[int, int, int]]) -> Callable[[], object]:
    """Return a function that computes all products with ONNX Runtime, each as often as `shapes` counts it.

    Each product is a graph. Its second matrix is a constant, so ONNX Runtime packs it in advance, like a weight.
    """
    graphs = []
    for (m, k, n), times in shapes.items():
        a, b = _matrices(m, k, n)
        tensor = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])],
            "gemm",
            [tensor("a", onnx.TensorProto.FLOAT, (m, k))],
            [tensor("c", onnx.TensorProto.FLOAT, (m, n))],
            [onnx.numpy_helper.from_array(b, "b")],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        # Options of the real transformer. With ONNX Runtime's defaults, the idle threads of each session would take
        # processor time from the session that computes.
        options = session_options("transformer", cores())
        graphs.append((onnxruntime.InferenceSession(model.SerializeToString(), options), a, times))
    return lambda: [graph.run(None, {"a": a}) for graph, a, times in graphs for _ in range(times)]


_GEMMS = {"numpy": _numpy_gemms, "torch": _torch_gemms, "onnxruntime": _onnx_gemms}


def _fastest(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few calls. Other processes affect it least."""
    call()
    samples_s = []
    for _ in range(_REPEATS):
        began_s = time.perf_counter()
        call()
        samples_s.append(time.perf_counter() - began_s)
    return min(samples_s)


def _breakdown(checkpoint: Path, inputs: dict[str, np.ndarray[Any, Any]]) -> list[str]:
    """Return a note: the share of each kind of operator in the time of a step, from ONNX Runtime's profile."""
    with TemporaryDirectory() as folder:
        options = session_options("transformer", cores())
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        graph = onnxruntime.InferenceSession(
            checkpoint / "transformer" / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        for _ in range(_REPEATS):
            graph.run(["latent"], inputs)
        events = json.loads(Path(graph.end_profiling()).read_text(encoding="utf-8"))
    took_us: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            took_us[event["args"]["op_name"]] += event["dur"]
    total_us = sum(took_us.values())
    shares = ", ".join(f"{name} {us / total_us:.0%}" for name, us in took_us.most_common(8))
    return [f"a step with {ROWS[0]} rows: {shares}"]
