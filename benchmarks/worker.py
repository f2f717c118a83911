"""Generate images on request, with one implementation: `python -m benchmarks.worker SIDE CHECKPOINT`.

SIDE, a key of `SIDES`, is the implementation. Each line of JSON on standard input requests an image, with the arguments
of `Generate`. A line on standard output then returns the image and its times. Between two images, the process computes
nothing, so that several workers can alternate on one machine.
"""

import base64
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from sd35.errors import InvalidSetting
from sd35.host import HostMemory

# Each image has new prompts, so that no embedding comes from a cache.
PROMPT = "a cat to the left of a dog on a red background, {seed}"
NEGATIVE_PROMPT = "a tree, {seed}"
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


class StageTimes:
    """When the last image's text was encoded, and when its decoding began, in seconds of `time.perf_counter`.

    The times are recorded by wrapping the methods that encode and decode.
    """

    def __init__(self) -> None:
        self.encoded_s = self.decoding_s = 0.0

    def wrap(self, owner: object, name: str, stage: Literal["encoded_s", "decoding_s"]) -> None:
        """Wrap a method of `owner` so that it records the time of its end (`encoded_s`) or start (`decoding_s`)."""
        method = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401  any method
            if stage == "decoding_s":
                self.decoding_s = time.perf_counter()
            result = method(*arguments, **named)
            if stage == "encoded_s":
                self.encoded_s = time.perf_counter()
            return result

        setattr(owner, name, wrapped)


class Generate(Protocol):
    """A function that generates one square image."""

    def __call__(self, *, seed: int, steps: int, guidance: float, side_px: int) -> Pixels:
        """Return the image's pixels."""


def open_ours(checkpoint: str, times: StageTimes, *, backend: str, precision: str = "float32") -> Generate:
    """Open a backend of this project with its engine. Images are queued and generated like those of HTTP requests."""
    from sd35.engine.local.engine import LocalEngine
    from sd35.generation.params import GenerationParams
    from sd35.settings import load_settings
    from sd35.startup import open_checkpoints, open_model_pool

    settings = load_settings({"checkpoints": (checkpoint,), "backend": backend, "precision": precision})
    pool = open_model_pool(settings, open_checkpoints(settings))
    assert isinstance(pool.engine, LocalEngine)
    (pipeline,) = pool.engine._pipelines.values()  # noqa: SLF001  to time the backend itself
    times.wrap(pipeline.backend, "encode_text", "encoded_s")
    times.wrap(pipeline.backend, "decode_latents", "decoding_s")

    def generate(*, seed: int, steps: int, guidance: float, side_px: int) -> Pixels:
        prompts = PROMPT.format(seed=seed), NEGATIVE_PROMPT.format(seed=seed)
        params = GenerationParams(*prompts, side_px, side_px, steps, guidance, seed)
        return pool.submit(pool.resolve(params)).future.result().pixels

    return generate


def open_pipeline(checkpoint: str, times: StageTimes) -> Generate:
    """Open plain Diffusers: eager PyTorch in float32, called as in its documentation, without the progress bar."""
    import torch
    from diffusers import StableDiffusion3Pipeline

    from sd35.checkpoints.open import open_checkpoint

    pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    text_tokens = open_checkpoint(checkpoint).card.max_sequence_length
    times.wrap(pipeline, "encode_prompt", "encoded_s")
    times.wrap(pipeline.vae, "decode", "decoding_s")

    def generate(*, seed: int, steps: int, guidance: float, side_px: int) -> Pixels:
        image = pipeline(
            PROMPT.format(seed=seed),
            negative_prompt=NEGATIVE_PROMPT.format(seed=seed),
            width=side_px,
            height=side_px,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=text_tokens,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        return np.asarray(image)

    return generate


def open_genai(checkpoint: str, times: StageTimes, *, is_fixed: bool = False, is_default: bool = False) -> Generate:
    """Open OpenVINO GenAI. Its images begin with the same noise as ours. See `_open_genai_pipeline`."""
    import openvino_genai as genai
    from openvino import Tensor

    from sd35.sampling.noise import initial_noise

    class Noise(genai.Generator):
        """Generates this project's initial noise for a seed."""

        def __init__(self, seed: int) -> None:
            super().__init__()
            self._seed = seed

        def randn_tensor(self, shape: Sequence[int]) -> Tensor:
            return Tensor(initial_noise(self._seed, tuple(shape)))

    pipeline = _open_genai_pipeline(checkpoint, is_fixed=is_fixed, is_default=is_default)

    def generate(*, seed: int, steps: int, guidance: float, side_px: int) -> Pixels:
        image = pipeline.generate(
            PROMPT.format(seed=seed),
            negative_prompt=NEGATIVE_PROMPT.format(seed=seed),
            width=side_px,
            height=side_px,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=Noise(seed),
        )
        took = pipeline.get_performance_metrics()
        times.decoding_s = time.perf_counter() - took.get_vae_decoder_infer_duration() / 1e3  # milliseconds
        times.encoded_s = times.decoding_s - sum(took.raw_metrics.iteration_durations) / 1e6  # microseconds
        return np.array(image.data[0])

    return generate


def _open_genai_pipeline(checkpoint: str, *, is_fixed: bool, is_default: bool) -> Any:  # noqa: ANN401  GenAI's class
    """Open and compile the checkpoint that `benchmarks.openvino_convert` wrote to `$OPENVINO_MODEL`.

    By default, it does the same work as our backends: it computes in float32, and runs the transformer at every step.

    Args:
        checkpoint: Directory of the original checkpoint, for the text length.
        is_fixed: Compile the graphs only for the benchmark's size and guidance.
        is_default: Keep the library's default settings, except for the text length.
    """
    import openvino_genai as genai

    from benchmarks.image import GUIDANCE, SIDE_PX
    from sd35.checkpoints.open import open_checkpoint

    pipeline = genai.Text2ImagePipeline(os.environ["OPENVINO_MODEL"])
    config = pipeline.get_generation_config()
    config.max_sequence_length = open_checkpoint(checkpoint).card.max_sequence_length
    if not is_default:
        config.taylorseer_config = None  # by default, GenAI extrapolates two of three steps from the seventh on
    pipeline.set_generation_config(config)
    if is_fixed:
        pipeline.reshape(1, SIDE_PX, SIDE_PX, GUIDANCE)
    precision = {} if is_default else {"INFERENCE_PRECISION_HINT": "f32"}  # the default is BF16, if available
    pipeline.compile("CPU", **precision)
    return pipeline


SIDES: Mapping[str, Callable[[str, StageTimes], Generate]] = {
    "onnx": partial(open_ours, backend="onnx"),
    "openvino": partial(open_ours, backend="openvino"),
    "openvino-bf16": partial(open_ours, backend="openvino", precision="bfloat16"),
    "pipeline": open_pipeline,
    "genai": open_genai,
    "genai-fixed": partial(open_genai, is_fixed=True),
    "genai-default": partial(open_genai, is_default=True),
}


def main() -> None:
    """Load the side, print `{}` or why it cannot run, then answer requests until standard input ends."""
    side, checkpoint = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # sends the output of libraries to stderr, so that it does not get between the answers
    times = StageTimes()
    try:
        generate = SIDES[side](checkpoint, times)
    except InvalidSetting as error:  # such as a precision that this processor does not support
        print(json.dumps({"cannot_run": str(error)}), file=answers, flush=True)
        return
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        idle_cpu_s = time.process_time()
        started_s = time.perf_counter()
        pixels = generate(**request)
        ended_s = time.perf_counter()
        answer = {
            "total_s": ended_s - started_s,
            "encode_s": times.encoded_s - started_s,
            "step_s": (times.decoding_s - times.encoded_s) / request["steps"],
            "decode_s": ended_s - times.decoding_s,
            "cpu_before_s": idle_cpu_s,
            "cpu_after_s": time.process_time(),
            "peak_bytes": HostMemory().peak_bytes(),
            "pixels": base64.b64encode(pixels.tobytes()).decode(),
        }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
