"""A test server with a small checkpoint in the real layout, and with other files that must not be downloaded."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from sd35.checkpoints.registry import RegisteredCheckpoint
from tests.support.hub_server import Hub, Repository, serving, use

REPOSITORY, REVISION = "someone/small-sd3.5", "1" * 40
T5_INDEX = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
SMALL = {
    path: f"{{}} {path}".encode()
    for path in (
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"text_encoder{number}/config.json" for number in ("", "_2", "_3")),
        *(f"tokenizer{number}/{file}" for number in ("", "_2") for file in ("vocab.json", "merges.txt")),
        *(f"tokenizer{number}/tokenizer_config.json" for number in ("", "_2", "_3")),
        "tokenizer_3/spiece.model",
        "tokenizer_3/tokenizer.json",
        "transformer/config.json",
        "vae/config.json",
    )
} | {"text_encoder_3/model.safetensors.index.json": T5_INDEX}
LARGE = {
    path: path.encode() * 5000
    for path in (
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "text_encoder_3/model-00001-of-00002.safetensors",
        "text_encoder_3/model-00002-of-00002.safetensors",
        TRANSFORMER,
        "vae/diffusion_pytorch_model.safetensors",
    )
}
OTHERS = {
    path: path.encode()
    for path in (
        ".gitattributes",
        "LICENSE.md",
        "README.md",
        "sd3.5_large.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder_2/model.fp16.safetensors",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
        "text_encoder_3/model.fp16-00002-of-00002.safetensors",
        "text_encoder_3/model.safetensors.index.fp16.json",
        "text_encoders/clip_g.safetensors",
        "text_encoders/t5xxl_fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "workflow/example.json",
    )
}


@pytest.fixture(scope="module")
def _server() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def hub(_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the small checkpoint, which needs no token. Downloads go to a temporary cache."""
    fresh = Hub(url=_server.url, repositories={REPOSITORY: Repository({**SMALL, **LARGE, **OTHERS}, REVISION)})
    vars(_server).update(vars(fresh))
    use(_server, tmp_path, monkeypatch)
    yield _server
    close_session()


@pytest.fixture
def entry() -> RegisteredCheckpoint:
    """The registry's entry of the small checkpoint."""
    return RegisteredCheckpoint("small", REPOSITORY, REVISION)
