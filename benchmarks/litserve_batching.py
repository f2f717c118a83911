"""A server to compare `sd35 serve` with: Diffusers' pipeline with LitServe's dynamic batching.

`PLAIN_CHECKPOINT=directory python -m benchmarks.litserve_batching --port PORT`.

LitServe collects the requests that arrive within its window. A call of the pipeline has one number of steps, one
guidance and one size. Requests with the same values of these share a call.
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


class PipelineAPI(litserve.LitAPI):
    """The pipeline as a LitServe API. LitServe calls the methods in their order."""

    def setup(self, device: str) -> None:  # noqa: ARG002  always the CPU
        """Load the pipeline and generate one image as a warm-up."""
        checkpoint = open_checkpoint(os.environ["PLAIN_CHECKPOINT"])
        self.text_tokens = checkpoint.card.max_sequence_length
        self.pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.generate([Txt2Img(prompt=" ", width=64, height=64, steps=1)])

    def decode_request(self, request: Txt2Img) -> Txt2Img:
        """Return the parsed request."""
        return request

    def batch(self, inputs: list[Txt2Img]) -> list[Txt2Img]:
        """Use the requests as the batch."""
        return inputs

    def predict(self, x: list[Txt2Img]) -> list[bytes]:
        """Return a PNG file for each request. Requests with the same steps, guidance and size share a call."""
        groups = defaultdict(list)
        for index, request in enumerate(x):
            groups[request.steps, request.guidance_scale, request.width, request.height].append(index)
        files: dict[int, bytes] = {}
        for indices in groups.values():
            files |= zip(indices, self.generate([x[index] for index in indices]), strict=True)
        return [files[index] for index in range(len(x))]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Use the results of the batch as they are."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Return the PNG file."""
        return Response(output, media_type="image/png")

    def generate(self, requests: list[Txt2Img]) -> list[bytes]:
        """Generate images with one call of the pipeline, and return them as PNG files.

        The size, number of steps and guidance of the first request apply to all.
        """
        first = requests[0]
        images: list[Any] = self.pipeline(
            [request.prompt for request in requests],
            negative_prompt=[request.negative_prompt for request in requests],
            width=first.width,
            height=first.height,
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            max_sequence_length=self.text_tokens,
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
        ).images
        files = []
        for image in images:
            file = io.BytesIO()
            image.save(file, "PNG")
            files.append(file.getvalue())
        return files


if __name__ == "__main__":
    api = PipelineAPI(max_batch_size=MAX_BATCH, batch_timeout=WINDOW_S, api_path="/v1/txt2img")
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    server = litserve.LitServer(api, accelerator="cpu", timeout=600, healthcheck_path="/readyz")
    server.run(host="127.0.0.1", port=parser.parse_args().port, generate_client_file=False, log_level="warning")
