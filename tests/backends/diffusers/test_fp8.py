"""FP8 in PyTorch: the selection of weights, the computation with them, and the quality of images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from sd35.backends.base import Backend, DenoiseRow, Skip
from sd35.backends.diffusers import fp8
from sd35.backends.diffusers.backend import DiffusersBackend, place
from sd35.backends.diffusers.disk_offload import bytes_of, weights_of
from sd35.backends.diffusers.fp8 import FP8_PRECISIONS, resolve_fp8, torchao_config
from sd35.backends.diffusers.spec import SPEC
from sd35.backends.fp8_layers import Treatment
from sd35.backends.options import Offload, Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.network_sizes import NETWORKS, network_sizes_on_disk
from sd35.checkpoints.open import open_checkpoint
from sd35.compile.prompts import evaluation_prompts
from sd35.compile.quality_gate import MIN_MEAN_DB, Quality, compare, generate_images
from sd35.compile.reference_sampling import recipe_of
from sd35.compile.synth import synthesise
from sd35.engine.local.pipeline import Pipeline
from sd35.errors import InvalidSetting
from sd35.planning.footprint import fp8_values, weights_bytes
from sd35.sampling.noise import initial_noise
from sd35.settings import Precision
from sd35.tensors import Array
from tests.compile.test_synth import SMALL
from tests.support.solving import euler_step

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ON_A_CPU: tuple[Precision, ...] = ("fp8-weights", "fp8-storage")
PRODUCTS = ("attn.to_q", "attn.add_v_proj", "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "ff_context.net.2")
MODULATIONS = ("norm1.linear", "norm1_context.linear")
HIGH = ("context_embedder", "time_text_embed.text_embedder.linear_1", "norm_out.linear", "proj_out")
OF_T5 = ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o")
OF_T5_INNER = ("DenseReluDense.wi_0", "DenseReluDense.wi_1")


def open_fp8(checkpoint: Checkpoint, precision: Precision, offload: Offload = "none") -> DiffusersBackend:
    """Open the `diffusers` backend in FP8 on a CPU."""
    backend = open_backend("diffusers", checkpoint, Options(precision=precision, device="cpu", offload=offload))
    assert isinstance(backend, DiffusersBackend)
    return backend


@pytest.fixture(scope="module", params=ON_A_CPU)
def backend(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> DiffusersBackend:
    """A backend in each FP8 precision that runs on a CPU."""
    return open_fp8(checkpoint, request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small BF16 checkpoint like Medium, with two attentions in a block."""
    directory = tmp_path_factory.mktemp("fp8") / "small"
    synthesise(SMALL, directory, "bfloat16", lambda *_: None)
    return open_checkpoint(str(directory))


@pytest.fixture
def dynamic_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable torchao's hardware check. PyTorch can multiply FP8 on a CPU, only slowly."""
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda _: None)


def stored(weight: Tensor) -> Tensor:
    """Return a weight's values as they are stored in memory."""
    numbers = getattr(weight, "qdata", weight)
    assert isinstance(numbers, Tensor)
    return numbers


def is_quantised(layer: nn.Linear) -> bool:
    """Return whether torchao quantised a layer."""
    return hasattr(layer.weight, "qdata")


def stored_as(network: nn.Module) -> dict[str, torch.dtype]:
    """Return the number format of each linear layer's matrix, by name."""
    return {name: stored(layer.weight).dtype for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}


def quality(
    backend: Backend, checkpoint: Checkpoint, expected: list[Array] | None = None
) -> tuple[list[Array], Quality]:
    """Generate three images in six steps. Return them and their quality against `expected`."""
    recipe = replace(recipe_of(checkpoint), steps=6)
    texts = [
        (backend.encode_text([prompt])[0], backend.encode_text([""])[0]) for prompt in evaluation_prompts(checkpoint)
    ]
    found = generate_images(backend, recipe, texts[:3], lambda: None)
    return found, compare(found, expected or found)


@pytest.fixture(scope="module")
def before(checkpoint: Checkpoint) -> list[Array]:
    """The same images in float32."""
    return quality(DiffusersBackend(checkpoint, "float32", CPU, Options()), checkpoint)[0]


def row_of(backend: Backend, seed: int, prompt: str, skip: Skip | None = None) -> DenoiseRow:
    """Return the row of a guided image's first step."""
    positive, negative = backend.encode_text([prompt, ""])
    return DenoiseRow(initial_noise(seed, (16, 8, 8)), positive, negative, 1.0, 4.5, skip)


def test_exactly_the_selected_layers_are_in_fp8(backend: DiffusersBackend) -> None:
    """Attention, feed-forward and modulations of each block are; other layers, CLIP and the autoencoder are in BF16."""
    formats = stored_as(backend.transformer)
    for block in range(6):
        for layer in (*PRODUCTS, *MODULATIONS):
            if block < 5 or layer != "ff_context.net.2":  # the last block's text stream ends in the attention
                assert formats.pop(f"transformer_blocks.{block}.{layer}") == torch.float8_e4m3fn
    high = [name for name in formats if not name.startswith("transformer_blocks.")]
    assert {*HIGH} <= {*high}
    assert {formats.pop(name) for name in high} == {torch.bfloat16}
    assert {*formats.values()} == {torch.float8_e4m3fn}
    for name in NETWORKS:
        if name not in {"transformer", "text_encoder_3"}:
            network = getattr(backend._pipeline, name)  # noqa: SLF001
            assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}


def test_t5_is_in_fp8_only_with_storage_casting(backend: DiffusersBackend) -> None:
    """The last matrix of a feed-forward layer is excluded: Transformers casts its input to the matrix's format."""
    formats = stored_as(backend._pipeline.text_encoder_3)  # noqa: SLF001
    is_cast = backend.precision == "fp8-storage"
    for name, found in formats.items():
        in_fp8 = is_cast and name.endswith((*OF_T5, *OF_T5_INNER))
        assert found == (torch.float8_e4m3fn if in_fp8 else torch.bfloat16), name


def test_images_in_fp8_match_float32(backend: DiffusersBackend, checkpoint: Checkpoint, before: list[Array]) -> None:
    """The mean of several prompts is at least 25 dB. The images are not equal, because FP8 rounds."""
    found = quality(backend, checkpoint, before)[1]
    assert found.mean_db >= MIN_MEAN_DB
    assert max(found.psnr_db) < 60


@pytest.mark.usefixtures("dynamic_on_a_cpu")
def test_images_match_with_multiplication_in_fp8(checkpoint: Checkpoint, before: list[Array]) -> None:
    """On a CPU, emulated: the inputs of attention and feed-forward layers are in FP8, those of modulations are not."""
    backend = DiffusersBackend(checkpoint, "fp8-dynamic", CPU, Options())
    layers = {name: layer for name, layer in backend.transformer.named_modules() if isinstance(layer, nn.Linear)}
    inputs = {name: vars(layer.weight)["act_quant_kwargs"] for name, layer in layers.items() if is_quantised(layer)}
    assert {name for name, how in inputs.items() if how is None} == {
        f"transformer_blocks.{block}.{layer}" for block in range(6) for layer in MODULATIONS
    }
    assert quality(backend, checkpoint, before)[1].mean_db >= MIN_MEAN_DB


@pytest.mark.usefixtures("dynamic_on_a_cpu")
@pytest.mark.parametrize("precision", FP8_PRECISIONS)
def test_rows_do_not_affect_each_other(checkpoint: Checkpoint, precision: str) -> None:
    """With other rows in the batch, a latent changes only by the order of BF16 sums.

    If all rows shared one scale, a row with values a hundred times as large would round the others to zero.
    """
    backend = DiffusersBackend(checkpoint, precision, CPU, Options())
    row, *others = (row_of(backend, seed, prompt) for seed, prompt in ((1, "a cat"), (2, "a dog"), (3, "")))
    loud = [replace(other, latent=100 * np.asarray(other.latent)) for other in others]
    (alone,) = euler_step(backend, [row], 0.8)
    together = euler_step(backend, [loud[0], row, loud[1]], 0.8)[1]
    assert float((together - alone).float().abs().max()) < 0.05


def test_layers_can_be_skipped_in_fp8(backend: DiffusersBackend) -> None:
    """A step with skipped layers has another result."""
    plain, skipping = (row_of(backend, 1, "a cat", skip) for skip in (None, Skip((2, 3), 2.8)))
    latents = [euler_step(backend, [row], 0.8)[0] for row in (plain, skipping)]
    assert float((latents[0] - latents[1]).float().abs().max()) > 0.01


def test_memory_matches_the_plan(checkpoint: Checkpoint, small: Checkpoint) -> None:
    """The plan counts one byte for each FP8 value, and no scales. This includes Medium's second attention and T5."""
    for each, precision in ((checkpoint, "fp8-weights"), (small, "fp8-weights"), (small, "fp8-storage")):
        backend, network_sizes = DiffusersBackend(each, precision, CPU, Options()), network_sizes_on_disk(each)
        for name in NETWORKS:
            network = getattr(backend._pipeline, name)  # noqa: SLF001
            numbers = [stored(weight) for weight in network.parameters()]
            in_fp8 = [each for each in numbers if each.dtype == torch.float8_e4m3fn and each.ndim == 2]
            expected = fp8_values(SPEC, precision, name, network_sizes.networks[name].config)
            assert sum(each.numel() for each in in_fp8) == expected, name
        planned = weights_bytes(SPEC, precision, "transformer", network_sizes.networks["transformer"])
        assert bytes_of(weights_of(backend.transformer)) == pytest.approx(
            planned, rel=0.05
        )  # a scale takes 4 bytes per 256


@pytest.mark.parametrize("precision", ON_A_CPU)
def test_offloaded_networks_are_in_fp8(checkpoint: Checkpoint, precision: Precision) -> None:
    """The transformer is quantised again whenever it is read from disk, with the same result."""
    plain, offloaded = (open_fp8(checkpoint, precision, offload) for offload in ("none", "model"))
    for prompt in ("a cat", "a dog"):
        expected, found = (each.predict_velocity([row_of(each, 1, prompt)])[0] for each in (plain, offloaded))
        assert torch.equal(found, expected)
    assert offloaded._disk_offload is not None  # noqa: SLF001
    assert offloaded._disk_offload.held_bytes == bytes_of(weights_of(plain.transformer))  # noqa: SLF001


@pytest.mark.parametrize("precision", ON_A_CPU)
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_hooks_move_fp8_weights(checkpoint: Checkpoint, precision: Precision, offload: Offload) -> None:
    """Results stay the same if hooks move networks or layers. The CPU is used in place of a GPU."""
    plain, moved = (open_fp8(checkpoint, precision) for _ in range(2))
    row = row_of(plain, 1, "a cat")
    if offload == "model":
        place(moved._pipeline, CPU, offload)  # noqa: SLF001
    else:  # what the pipeline does for each network; the pipeline itself does not accept the CPU as the device
        cpu_offload(moved.transformer, CPU, offload_buffers=True)
    for _ in range(2):
        assert torch.equal(moved.predict_velocity([row])[0], plain.predict_velocity([row])[0])
    devices = {weight.device.type for weight in moved.transformer.parameters()}
    assert devices == {"cpu" if offload == "model" else "meta"}


def test_the_profile_has_the_actual_precision(backend: DiffusersBackend, checkpoint: Checkpoint) -> None:
    """`fp8` selects different precisions on a CPU and a GPU. The versions include torchao if it quantises."""
    assert Pipeline(checkpoint, backend).info.profile == f"diffusers/{backend.precision}"
    assert open_fp8(checkpoint, "fp8").precision == "fp8-weights"
    assert ("torchao" in backend.versions) == (backend.precision == "fp8-weights")


@pytest.mark.parametrize(
    ("capability", "precision"), [((8, 6), "fp8-weights"), ((8, 9), "fp8-dynamic"), ((9, 0), "fp8-dynamic")]
)
def test_fp8_follows_the_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str) -> None:
    """Multiplication in FP8 needs compute capability 8.9, which Ada has and Ampere does not."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_fp8("fp8", GPU) == precision
    assert [resolve_fp8(named, GPU) for named in ("fp8-weights", "fp8-storage")] == ["fp8-weights", "fp8-storage"]


def test_only_suitable_layers_multiply_in_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers with the treatment FP8 do, unless a side of the matrix is not a multiple of 16."""
    monkeypatch.setattr(fp8, "multiplies_fp8", lambda _: True)
    precision = resolve_fp8("fp8", GPU)
    square, odd = torch.Size((64, 64)), torch.Size((64, 40))
    kinds = [
        type(torchao_config(precision, treatment, shape)).__name__
        for treatment, shape in ((Treatment.FP8, square), (Treatment.WEIGHTS, square), (Treatment.FP8, odd))
    ]
    assert kinds == ["Float8DynamicActivationFloat8WeightConfig", "Float8WeightOnlyConfig", "Float8WeightOnlyConfig"]


def test_multiplication_in_fp8_is_refused_on_an_unsupported_device(checkpoint: Checkpoint) -> None:
    """The error lists the precisions that the device allows."""
    with pytest.raises(InvalidSetting, match=r"precision: got 'fp8-dynamic'.* allows: .*fp8, fp8-weights, fp8-storage"):
        open_fp8(checkpoint, "fp8-dynamic")
    with pytest.raises(
        InvalidSetting, match=r"precision: got 'fp8-dynamic'.* allowed on cpu: fp8, fp8-weights, fp8-storage"
    ):
        resolve_fp8("fp8-dynamic", CPU)


@pytest.mark.parametrize("precision", FP8_PRECISIONS)
def test_other_backends_refuse_fp8_precisions_of_diffusers(
    checkpoint: Checkpoint, tmp_path: Path, precision: Precision
) -> None:
    """The error names the precision and the backend."""
    with pytest.raises(InvalidSetting, match=f"precision: got '{precision}'; the onnx backend allows"):
        open_backend("onnx", checkpoint, Options(precision=precision, cache_dir=tmp_path))
