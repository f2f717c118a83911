"""A fallback from the settings: how it is loaded, planned and checked together with the first backend."""

import re
from pathlib import Path

import pytest

from sd35.checkpoints.network_sizes import network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.engine.local.engine import LocalEngine
from sd35.errors import DoesNotFit, InvalidSetting, NotCompiled
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from sd35.generation.replay import read_stored_image, replay
from sd35.planning.fit import available_memory, placement_of, plan_for
from sd35.settings import Settings, load_settings
from sd35.startup import open_model_pool

CHECKPOINTS = [open_checkpoint(EMBEDDED)]
PARAMS = GenerationParams("a cat", width=64, height=64, steps=2, seed=1)


def settings_of(cache_dir: Path, **flags: str) -> Settings:
    """Return settings with BF16 first and float32 as the fallback."""
    return load_settings(
        {"precision": "bfloat16", "fallback": "onnx/float32", "cache_dir": str(cache_dir), "threads": "1", **flags}
    )


def open_pool(settings: Settings) -> ModelPool:
    """Open a model pool as the server does."""
    return open_model_pool(settings, CHECKPOINTS, with_fallback=True)


def test_the_fallback_serves_until_the_graphs_are_built(tmp_path: Path):
    """Without a fallback, the error has the command that builds them."""
    settings = settings_of(tmp_path)
    with open_pool(settings) as pool:
        assert [model.profile for model in pool.models.values()] == ["onnx/float32"]
        assert pool.fallback_builder
        assert not pool.fallback_builder.is_running  # before the service is ready
        assert pool.submit(pool.resolve(PARAMS)).future.result().request.profile == "onnx/float32"
    with pytest.raises(NotCompiled, match="sd35 compile --checkpoint sd35-mini --precision bf16"):
        open_model_pool(settings, CHECKPOINTS)


def test_the_fallback_retries_images_with_numerical_failures(compiled: Path, monkeypatch: pytest.MonkeyPatch):
    """The retried image has the fallback's record, so the fallback's backend replays it."""
    with open_pool(settings_of(compiled)) as pool:
        assert pool.fallback_builder is None
        request = pool.resolve(PARAMS)
        assert pool.submit(request).future.result().request.profile == request.profile == "onnx/bfloat16"
        assert isinstance(pool.engine, LocalEngine)
        first = pool.engine._pipelines["sd35-mini", "onnx/bfloat16"].backend  # noqa: SLF001  to break it
        monkeypatch.setattr(first, "decode_latents", lambda _: (_ for _ in ()).throw(FloatingPointError()))
        encoded = pool.encode(pool.submit(request).future.result())
    assert (encoded.record.maker.precision, encoded.record.request.profile) == ("float32", "onnx/float32")
    with open_model_pool(load_settings({"threads": "1"}), CHECKPOINTS) as other:
        assert replay(read_stored_image(encoded.png), other).outcome == "same bytes"


def test_admission_reserves_memory_for_the_model_that_is_not_built_yet(tmp_path: Path):
    """The working memory is what the weights of both backends leave."""
    settings = settings_of(tmp_path, ram="1GB")
    available = available_memory(settings)
    all_network_sizes = [network_sizes_on_disk(CHECKPOINTS[0])]
    both = [
        placement_of(plan_for(each, all_network_sizes, available))
        for each in (settings, settings.fallback_settings)
        if each
    ]
    with open_pool(settings) as pool:
        left_bytes = 10**9 - sum(placement.weights_bytes for placement in both)
        assert pool.engine.status().limits.memory_bytes == int(0.9 * left_bytes)


def test_the_model_and_its_fallback_must_fit_together(tmp_path: Path):
    """The error has the plans of both."""
    with pytest.raises(DoesNotFit, match="sd35-mini does not fit in memory with a fallback") as refused:
        open_pool(settings_of(tmp_path, ram="300MB"))
    text = str(refused.value)
    assert re.search(
        r"in bfloat16 with the onnx.*Fits with offload 'none'.*The fallback, .*in float32 with the onnx.*Does not fit",
        text,
        re.DOTALL,
    )


@pytest.mark.parametrize("flags", [{"fallback": "onnx/bfloat16"}, {"fallback": "onnx", "precision": "float32"}])
def test_a_fallback_equal_to_the_first_backend_is_refused(tmp_path: Path, flags: dict[str, str]):
    """It has the same backend and precision, named explicitly or by default. The error lists the others."""
    message = r"fallback: got 'onnx.*', which computes in onnx/\w+ as the backend does; allowed: onnx/\w+, .*openvino/"
    with pytest.raises(InvalidSetting, match=message):
        open_pool(settings_of(tmp_path, **flags))


@pytest.mark.parametrize("wrong", ["", "/float32", "onnx/int3", "onnx/"])
def test_a_malformed_fallback_is_refused(wrong: str):
    """The error has the form and the precisions."""
    with pytest.raises(
        InvalidSetting, match=rf"--fallback: got '{wrong}'; .* BACKEND is onnx, .* PRECISION is one of auto, float32"
    ):
        load_settings({"fallback": wrong})
