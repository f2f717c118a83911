"""The plain pipeline behind LitServe's dynamic batching.

`PLAIN_CHECKPOINT=directory python -m benchmarks.litserve_batching --port PORT`.

LitServe hands over what came within its window. The pipeline takes one number of steps, one guidance and one size in a
call, so what differs in these is called in turn; what is alike shares a call.
"""

import argparse
import io
import os
from collections import defaultdict
from typing import Any

import litserve
import torch
from diffusers import StableDiffusion3Pipeline
from fastapi import Response

from benchmarks.plain_fastapi import Txt2Img
from sd35.checkpoints.open import open_checkpoint

MAX_BATCH, WINDOW_S = 8, 0.05


class Pictures(litserve.LitAPI):
    """LitServe's four steps around the pipeline."""

    def setup(self, device: str) -> None:  # noqa: ARG002  there is only the processor
        """Load the pipeline and draw once."""
        checkpoint = open_checkpoint(os.environ["PLAIN_CHECKPOINT"])
        self.text_tokens = checkpoint.card.max_sequence_length
        self.pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.draw([Txt2Img(prompt=" ", width=64, height=64, steps=1)])

    def decode_request(self, request: Txt2Img) -> Txt2Img:
        """As it is."""
        return request

    def batch(self, inputs: list[Txt2Img]) -> list[Txt2Img]:
        """A list is a batch."""
        return inputs

    def predict(self, x: list[Txt2Img]) -> list[bytes]:
        """One PNG file for each request, those that are alike in one call."""
        alike = defaultdict(list)
        for index, wanted in enumerate(x):
            alike[wanted.steps, wanted.guidance_scale, wanted.width, wanted.height].append(index)
        files: dict[int, bytes] = {}
        for chosen in alike.values():
            files |= zip(chosen, self.draw([x[index] for index in chosen]), strict=True)
        return [files[index] for index in range(len(x))]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """A batch is a list."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """The file."""
        return Response(output, media_type="image/png")

    def draw(self, wanted: list[Txt2Img]) -> list[bytes]:
        """Images of one size, number of steps and guidance, as PNG files."""
        first = wanted[0]
        images: list[Any] = self.pipeline(
            [each.prompt for each in wanted],
            negative_prompt=[each.negative_prompt for each in wanted],
            width=first.width,
            height=first.height,
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            max_sequence_length=self.text_tokens,
            generator=[torch.Generator("cpu").manual_seed(each.seed) for each in wanted],
        ).images
        files = []
        for image in images:
            file = io.BytesIO()
            image.save(file, "PNG")
            files.append(file.getvalue())
        return files


if __name__ == "__main__":
    api = Pictures(max_batch_size=MAX_BATCH, batch_timeout=WINDOW_S, api_path="/v1/txt2img")
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    server = litserve.LitServer(api, accelerator="cpu", timeout=600, healthcheck_path="/readyz")
    server.run(host="127.0.0.1", port=parser.parse_args().port, generate_client_file=False, log_level="warning")
