"""FP8 in PyTorch: which weights are kept so, what is computed with them, and that the images stay what they are."""

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
from sd35.backends.diffusers.fp8 import WAYS, config_of, way_of
from sd35.backends.diffusers.sequential_offload import bytes_of, weights_of
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
    """The backend on a CPU."""
    backend = open_backend("diffusers", checkpoint, Options(precision=precision, device="cpu", offload=offload))
    assert isinstance(backend, DiffusersBackend)
    return backend


@pytest.fixture(scope="module", params=ON_A_CPU)
def backend(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> DiffusersBackend:
    """Each way that a CPU has."""
    return open_fp8(checkpoint, request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint of Medium's kind, with two attentions in a block, in BF16."""
    directory = tmp_path_factory.mktemp("fp8") / "small"
    synthesise(SMALL, directory, "bfloat16", lambda *_: None)
    return open_checkpoint(str(directory))


@pytest.fixture
def dynamic_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away torchao's refusal of a CPU: PyTorch multiplies FP8 there, too, slowly."""
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda _: None)


def stored(weight: Tensor) -> Tensor:
    """A weight's numbers as they lie in memory."""
    numbers = getattr(weight, "qdata", weight)
    assert isinstance(numbers, Tensor)
    return numbers


def is_quantised(layer: nn.Linear) -> bool:
    """Whether torchao did."""
    return hasattr(layer.weight, "qdata")


def stored_as(network: nn.Module) -> dict[str, torch.dtype]:
    """The number format of each linear layer's matrix."""
    return {name: stored(layer.weight).dtype for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}


def quality(
    backend: Backend, checkpoint: Checkpoint, expected: list[Array] | None = None
) -> tuple[list[Array], Quality]:
    """Three images in six steps, against others."""
    recipe = replace(recipe_of(checkpoint), steps=6)
    texts = [
        (backend.encode_text([prompt])[0], backend.encode_text([""])[0]) for prompt in evaluation_prompts(checkpoint)
    ]
    found = generate_images(backend, recipe, texts[:3], lambda: None)
    return found, compare(found, expected or found)


@pytest.fixture(scope="module")
def before(checkpoint: Checkpoint) -> list[Array]:
    """The images in float32."""
    return quality(DiffusersBackend(checkpoint, "float32", CPU, Options()), checkpoint)[0]


def row_of(backend: Backend, seed: int, prompt: str, skip: Skip | None = None) -> DenoiseRow:
    """A guided image's first step."""
    positive, negative = backend.encode_text([prompt, ""])
    return DenoiseRow(initial_noise(seed, (16, 8, 8)), positive, negative, 1.0, 4.5, skip)


def test_the_rules_layers_are_kept_in_fp8_and_no_others(backend: DiffusersBackend) -> None:
    """Attention, inner layers and modulations of each block; all else, and the other networks, are in BF16."""
    formats = stored_as(backend.transformer)
    for block in range(6):
        for layer in (*PRODUCTS, *MODULATIONS):
            if block < 5 or layer != "ff_context.net.2":  # the last block's text goes no further than attention
                assert formats.pop(f"transformer_blocks.{block}.{layer}") == torch.float8_e4m3fn
    high = [name for name in formats if not name.startswith("transformer_blocks.")]
    assert {*HIGH} <= {*high}
    assert {formats.pop(name) for name in high} == {torch.bfloat16}
    assert {*formats.values()} == {torch.float8_e4m3fn}
    for name in NETWORKS:
        if name not in {"transformer", "text_encoder_3"}:
            network = getattr(backend._pipeline, name)  # noqa: SLF001
            assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}


def test_only_storage_casting_keeps_t5_in_fp8(backend: DiffusersBackend) -> None:
    """But for the last matrix of inner layers, whose input Transformers casts to the format that it is stored in."""
    formats = stored_as(backend._pipeline.text_encoder_3)  # noqa: SLF001
    is_cast = backend.precision == "fp8-storage"
    for name, found in formats.items():
        in_fp8 = is_cast and name.endswith((*OF_T5, *OF_T5_INNER))
        assert found == (torch.float8_e4m3fn if in_fp8 else torch.bfloat16), name


def test_images_in_fp8_are_those_of_float32(
    backend: DiffusersBackend, checkpoint: Checkpoint, before: list[Array]
) -> None:
    """At least 25 dB on the mean of several prompts; and not the very same, for FP8 does round."""
    found = quality(backend, checkpoint, before)[1]
    assert found.mean_db >= MIN_MEAN_DB
    assert max(found.psnr_db) < 60


@pytest.mark.usefixtures("dynamic_on_a_cpu")
def test_products_in_fp8_draw_those_images_too(checkpoint: Checkpoint, before: list[Array]) -> None:
    """The way of a GPU, emulated: inputs rounded to FP8 for attention and inner layers, and not for modulations."""
    backend = DiffusersBackend(checkpoint, "fp8-dynamic", CPU, Options())
    layers = {name: layer for name, layer in backend.transformer.named_modules() if isinstance(layer, nn.Linear)}
    inputs = {name: vars(layer.weight)["act_quant_kwargs"] for name, layer in layers.items() if is_quantised(layer)}
    assert {name for name, how in inputs.items() if how is None} == {
        f"transformer_blocks.{block}.{layer}" for block in range(6) for layer in MODULATIONS
    }
    assert quality(backend, checkpoint, before)[1].mean_db >= MIN_MEAN_DB


@pytest.mark.usefixtures("dynamic_on_a_cpu")
@pytest.mark.parametrize("precision", WAYS)
def test_a_row_is_what_it_is_alone(checkpoint: Checkpoint, precision: str) -> None:
    """Beside images of other texts and noise, its latent moves no more than BF16's sums in another order do.

    With one scale for all rows, a companion whose values are a hundred times as large would round it to nothing.
    """
    backend = DiffusersBackend(checkpoint, precision, CPU, Options())
    row, *others = (row_of(backend, seed, prompt) for seed, prompt in ((1, "a cat"), (2, "a dog"), (3, "")))
    loud = [replace(other, latent=100 * np.asarray(other.latent)) for other in others]
    (alone,) = euler_step(backend, [row], 0.8)
    together = euler_step(backend, [loud[0], row, loud[1]], 0.8)[1]
    assert float((together - alone).float().abs().max()) < 0.05


def test_layers_are_skipped_in_fp8_too(backend: DiffusersBackend) -> None:
    """A step that leaves layers out is another."""
    plain, skipping = (row_of(backend, 1, "a cat", skip) for skip in (None, Skip((2, 3), 2.8)))
    latents = [euler_step(backend, [row], 0.8)[0] for row in (plain, skipping)]
    assert float((latents[0] - latents[1]).float().abs().max()) > 0.01


def test_memory_is_what_the_plan_says(checkpoint: Checkpoint, small: Checkpoint) -> None:
    """All weights but scales; also of Medium's kind, and of T5; in FP8 the rule's matrices, a byte for a number."""
    for each, precision in ((checkpoint, "fp8-weights"), (small, "fp8-weights"), (small, "fp8-storage")):
        backend, network_sizes = DiffusersBackend(each, precision, CPU, Options()), network_sizes_on_disk(each)
        for name in NETWORKS:
            network = getattr(backend._pipeline, name)  # noqa: SLF001
            numbers = [stored(weight) for weight in network.parameters()]
            in_fp8 = [each for each in numbers if each.dtype == torch.float8_e4m3fn and each.ndim == 2]
            expected = fp8_values(SPEC, precision, name, network_sizes.networks[name].config)
            assert sum(each.numel() for each in in_fp8) == expected, name
        said = weights_bytes(SPEC, precision, "transformer", network_sizes.networks["transformer"])
        assert bytes_of(weights_of(backend.transformer)) == pytest.approx(said, rel=0.05)  # scales: 4 bytes of 256


@pytest.mark.parametrize("precision", ON_A_CPU)
def test_networks_under_sequential_offload_are_in_fp8_each_time(checkpoint: Checkpoint, precision: Precision) -> None:
    """Read anew from disk, the transformer is quantised anew, and draws what it drew."""
    plain, frugal = (open_fp8(checkpoint, precision, offload) for offload in ("none", "model"))
    for prompt in ("a cat", "a dog"):
        expected, found = (each.predict_velocity([row_of(each, 1, prompt)])[0] for each in (plain, frugal))
        assert torch.equal(found, expected)
    assert frugal._sequential is not None  # noqa: SLF001
    assert frugal._sequential.held_bytes == bytes_of(weights_of(plain.transformer))  # noqa: SLF001


@pytest.mark.parametrize("precision", ON_A_CPU)
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_hooks_move_what_is_in_fp8(checkpoint: Checkpoint, precision: Precision, offload: Offload) -> None:
    """Brought by hooks, network or layers compute what they did; the CPU stands in for a GPU."""
    plain, moved = (open_fp8(checkpoint, precision) for _ in range(2))
    row = row_of(plain, 1, "a cat")
    if offload == "model":
        place(moved._pipeline, CPU, offload)  # noqa: SLF001
    else:  # what the reference_pipeline does for each network: it itself refuses to call one with the CPU for a device
        cpu_offload(moved.transformer, CPU, offload_buffers=True)
    for _ in range(2):
        assert torch.equal(moved.predict_velocity([row])[0], plain.predict_velocity([row])[0])
    away = {weight.device.type for weight in moved.transformer.parameters()}
    assert away == {"cpu" if offload == "model" else "meta"}


def test_the_profile_says_what_was_computed(backend: DiffusersBackend, checkpoint: Checkpoint) -> None:
    """Not what was asked: `fp8` is one thing on a CPU and another on a GPU. torchao is named where it rounds."""
    assert Pipeline(checkpoint, backend).info.profile == f"diffusers/{backend.precision}"
    assert open_fp8(checkpoint, "fp8").precision == "fp8-weights"
    assert ("torchao" in backend.versions) == (backend.precision == "fp8-weights")


@pytest.mark.parametrize(
    ("capability", "way"), [((8, 6), "fp8-weights"), ((8, 9), "fp8-dynamic"), ((9, 0), "fp8-dynamic")]
)
def test_the_gpu_decides(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], way: str) -> None:
    """Products in FP8 from compute capability 8.9 on, which Ada has and Ampere has not."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert way_of("fp8", GPU) == way
    assert [way_of(named, GPU) for named in ("fp8-weights", "fp8-storage")] == ["fp8-weights", "fp8-storage"]


def test_products_in_fp8_are_chosen_for_the_right_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU that has them: attention and inner layers, scaled by row; not modulations, nor sides of no use."""
    monkeypatch.setattr(fp8, "multiplies_fp8", lambda _: True)
    way = way_of("fp8", GPU)
    square, odd = torch.Size((64, 64)), torch.Size((64, 40))
    kinds = [
        type(config_of(way, treatment, shape)).__name__
        for treatment, shape in ((Treatment.FP8, square), (Treatment.WEIGHTS, square), (Treatment.FP8, odd))
    ]
    assert kinds == ["Float8DynamicActivationFloat8WeightConfig", "Float8WeightOnlyConfig", "Float8WeightOnlyConfig"]


def test_products_in_fp8_are_refused_where_there_are_none(checkpoint: Checkpoint) -> None:
    """A device that cannot multiply FP8 refuses them if settings name them; the error lists what it allows."""
    with pytest.raises(InvalidSetting, match=r"precision: got 'fp8-dynamic'.* allows: .*fp8, fp8-weights, fp8-storage"):
        open_fp8(checkpoint, "fp8-dynamic")
    with pytest.raises(
        InvalidSetting, match=r"precision: got 'fp8-dynamic'.* cpu allows: fp8, fp8-weights, fp8-storage"
    ):
        way_of("fp8-dynamic", CPU)


@pytest.mark.parametrize("precision", WAYS)
def test_other_backends_refuse_them(checkpoint: Checkpoint, tmp_path: Path, precision: Precision) -> None:
    """Their FP8 has no ways to choose from."""
    with pytest.raises(InvalidSetting, match=f"precision: got '{precision}'; the onnx backend allows"):
        open_backend("onnx", checkpoint, Options(precision=precision, cache_dir=tmp_path))
