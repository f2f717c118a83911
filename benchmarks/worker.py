"""A process that draws images on demand: `python -m benchmarks.worker SIDE CHECKPOINT`; for sides see `SIDES`.

One line of JSON asks for an image (seed, steps, guidance, side in pixels), one answers with it and what it took.
Between two images the process waits for a line and computes nothing, so two of these can take turns on one machine.
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

# New words with each image, so that none finds its text encoded already.
PROMPT = "a cat to the left of a dog on a red background, {seed}"
NEGATIVE_PROMPT = "a tree, {seed}"
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


class Marks:
    """When the text was encoded and when decoding began, by watching the two functions that do it."""

    def __init__(self) -> None:
        self.encoded_s = self.decoding_s = 0.0

    def watch(self, owner: object, name: str, mark: Literal["encoded_s", "decoding_s"]) -> None:
        """Replace a method of `owner` by one that also notes the time: of its end for encoding, else of its start."""
        method = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401  whatever the method takes and gives
            if mark == "decoding_s":
                self.decoding_s = time.perf_counter()
            result = method(*arguments, **named)
            if mark == "encoded_s":
                self.encoded_s = time.perf_counter()
            return result

        setattr(owner, name, watched)


class Draw(Protocol):
    """Draws one square image."""

    def __call__(self, *, seed: int, steps: int, guidance: float, side_px: int) -> Pixels:
        """The image's pixels."""


def open_ours(checkpoint: str, marks: Marks, *, backend: str, precision: str = "float32") -> Draw:
    """One of our backends, through what a request goes through: resolved, queued, drawn on the engine's thread."""
    from sd35.generation.params import GenerationParams
    from sd35.settings import load_settings
    from sd35.startup import open_checkpoints, open_model_pool

    settings = load_settings({"checkpoints": (checkpoint,), "backend": backend, "precision": precision})
    pool = open_model_pool(settings, open_checkpoints(settings))
    (model,) = pool.models.values()
    marks.watch(model.backend, "encode_text", "encoded_s")
    marks.watch(model.backend, "decode_latents", "decoding_s")

    def draw(*, seed: int, steps: int, guidance: float, side_px: int) -> Pixels:
        prompts = PROMPT.format(seed=seed), NEGATIVE_PROMPT.format(seed=seed)
        wanted = GenerationParams(*prompts, side_px, side_px, steps, guidance, seed)
        return pool.submit(pool.resolve(wanted)).future.result().pixels

    return draw


def open_pipeline(checkpoint: str, marks: Marks) -> Draw:
    """Plain Diffusers: eager PyTorch in float32, called as its documentation does, without the progress bar."""
    import torch
    from diffusers import StableDiffusion3Pipeline

    from sd35.checkpoints.open import open_checkpoint

    pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    text_tokens = open_checkpoint(checkpoint).card.max_sequence_length
    marks.watch(pipeline, "encode_prompt", "encoded_s")
    marks.watch(pipeline.vae, "decode", "decoding_s")

    def draw(*, seed: int, steps: int, guidance: float, side_px: int) -> Pixels:
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

    return draw


def open_genai(checkpoint: str, marks: Marks, *, is_fixed: bool = False, is_default: bool = False) -> Draw:
    """OpenVINO GenAI, on the checkpoint as `benchmarks.openvino_convert` wrote it in `$OPENVINO_MODEL`.

    By default it is told to do the same work: float32, and every step by the transformer. `is_fixed`: its graphs are
    made for the size and guidance of the benchmark alone. `is_default`: nothing but the text length is set.
    """
    import openvino_genai as genai
    from openvino import Tensor

    from benchmarks.image import GUIDANCE, SIDE_PX
    from sd35.checkpoints.open import open_checkpoint
    from sd35.sampling.noise import initial_noise

    class Noise(genai.Generator):
        """The noise that our image of a seed starts from."""

        def __init__(self, seed: int) -> None:
            super().__init__()
            self._seed = seed

        def randn_tensor(self, shape: Sequence[int]) -> Tensor:
            return Tensor(initial_noise(self._seed, tuple(shape)))

    pipeline = genai.Text2ImagePipeline(os.environ["OPENVINO_MODEL"])
    config = pipeline.get_generation_config()
    config.max_sequence_length = open_checkpoint(checkpoint).card.max_sequence_length
    if not is_default:
        config.taylorseer_config = None  # else two of three steps, from the seventh on, are only extrapolated
    pipeline.set_generation_config(config)
    if is_fixed:
        pipeline.reshape(1, SIDE_PX, SIDE_PX, GUIDANCE)
    pipeline.compile("CPU", **({} if is_default else {"INFERENCE_PRECISION_HINT": "f32"}))  # else BF16 where there is

    def draw(*, seed: int, steps: int, guidance: float, side_px: int) -> Pixels:
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
        marks.decoding_s = time.perf_counter() - took.get_vae_decoder_infer_duration() / 1e3
        marks.encoded_s = marks.decoding_s - sum(took.raw_metrics.iteration_durations) / 1e6
        return np.array(image.data[0])

    return draw


SIDES: Mapping[str, Callable[[str, Marks], Draw]] = {
    "onnx": partial(open_ours, backend="onnx"),
    "openvino": partial(open_ours, backend="openvino"),
    "openvino-bf16": partial(open_ours, backend="openvino", precision="bfloat16"),
    "pipeline": open_pipeline,
    "genai": open_genai,
    "genai-fixed": partial(open_genai, is_fixed=True),
    "genai-default": partial(open_genai, is_default=True),
}


def peak_bytes() -> int:
    """The most physical memory this process ever held; on Linux without what its parent held (`ru_maxrss` has that)."""
    return HostMemory().peak_bytes()


def main() -> None:
    """Load, say so, then answer until standard input ends."""
    side, checkpoint = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    marks = Marks()
    try:
        draw = SIDES[side](checkpoint, marks)
    except InvalidSetting as error:  # such as a precision that this processor does not have
        print(json.dumps({"cannot_run": str(error)}), file=answers, flush=True)
        return
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        idle_cpu_s = time.process_time()
        started_s = time.perf_counter()
        pixels = draw(**asked)
        ended_s = time.perf_counter()
        answer = {
            "total_s": ended_s - started_s,
            "encode_s": marks.encoded_s - started_s,
            "step_s": (marks.decoding_s - marks.encoded_s) / asked["steps"],
            "decode_s": ended_s - marks.decoding_s,
            "cpu_before_s": idle_cpu_s,
            "cpu_after_s": time.process_time(),
            "peak_bytes": peak_bytes(),
            "pixels": base64.b64encode(pixels.tobytes()).decode(),
        }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
