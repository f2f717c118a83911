"""Loading weights from all supported kinds of files, and errors for other files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd35.backends.diffusers.loading import load_network, load_pipeline
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.architectures import ARCHITECTURES
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.compile.synth import synthesise
from sd35.errors import CheckpointError, InvalidSetting
from sd35.request import Request
from sd35.settings import load_settings
from sd35.startup import open_checkpoints
from tests.compile.test_synth import SMALL
from tests.support import stability
from tests.support.direct_generation import generate_directly

_INPUT = {"scale_weight": "scale_input", "weight_scale": "input_scale"}
PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint like Medium, in BF16."""
    directory = tmp_path_factory.mktemp("loading") / "medium"
    synthesise(SMALL, directory, "bfloat16", lambda *_: None)
    return directory


def states(directory: Path) -> dict[str, dict[str, Tensor]]:
    """Return the stored parameters of each part."""
    return {part: load_file(next((directory / part).glob("*.safetensors"))) for part in PARTS}


def write(path: Path, state: dict[str, Tensor]) -> Path:
    """Write a safetensors file, and return its path."""
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def values(checkpoint: Checkpoint, part: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Load a network, and return its parameters."""
    return load_network(checkpoint, part, dtype).state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_networks_equal_those_of_from_pretrained(dtype: torch.dtype):
    """Parameters and buffers are equal, even those in float32. Tokenizers and the scheduler have equal types."""
    checkpoint = open_checkpoint("sd35-mini")
    ours = load_pipeline(checkpoint, dtype)
    theirs = StableDiffusion3Pipeline.from_pretrained(checkpoint.directory, dtype=dtype)
    for part in PARTS:
        mine, other = getattr(ours, part), getattr(theirs, part)
        for kind in ("state_dict", "named_buffers"):
            found, expected = (dict(getattr(network, kind)()) for network in (mine, other))
            assert found.keys() == expected.keys()
            for name, value in found.items():
                assert value.dtype == expected[name].dtype, name
                assert torch.equal(value, expected[name]), name
    for part in ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"):
        assert type(getattr(ours, part)) is type(getattr(theirs, part))


def test_weights_in_the_right_format_are_mapped_and_not_copied(medium: Path):
    """All parameters are in one mapping of the file, at the file's offsets."""
    network = values(open_checkpoint(str(medium)), "transformer", torch.bfloat16)
    stored = open_checkpoint(str(medium)).weights("transformer")
    starts = {value.data_ptr() - stored[name].stored.start for name, value in network.items()}
    assert len(starts) == 1


def test_single_files_have_the_names_that_diffusers_converts(medium: Path):
    """Diffusers' converters turn the test's single file into the names and values of the directory."""
    parts = states(medium)
    spelled = stability.transformer(parts["transformer"])
    theirs = convert_sd3_transformer_checkpoint_to_diffusers(dict(spelled))
    config = dict(AutoencoderKL.load_config(medium / "vae"))
    their_vae = convert_ldm_vae_checkpoint(stability.vae(parts["vae"]), config)
    for part, converted in (("transformer", theirs), ("vae", their_vae)):
        assert converted.keys() == parts[part].keys()
        for name, value in converted.items():
            assert torch.equal(value, parts[part][name]), name


@pytest.mark.parametrize("held", [PARTS, ("transformer", "vae"), ("transformer",)], ids=["all", "no encoders", "bare"])
def test_a_single_file_gives_the_image_of_its_directory(medium: Path, tmp_path: Path, held: tuple[str, ...]):
    """Parts that the file lacks come from the directory."""
    parts = {part: state for part, state in states(medium).items() if part in held}
    spelled = stability.single_file(parts) if len(held) > 1 else stability.transformer(parts["transformer"])
    for part in held:
        assert (medium / part).is_dir()
    file = write(tmp_path / "sd3.5_medium.safetensors", spelled)
    images = []
    for checkpoint in (open_checkpoint(str(medium)), open_checkpoint(str(medium), None, [file])):
        backend = open_backend("diffusers", checkpoint, Options(precision="float32", device="cpu"))
        request = Request("a cat", "a dog", 64, 64, 2, 4.0, 3, "model", "revision", "profile")
        images.append(generate_directly(backend, checkpoint, request))
    assert np.array_equal(images[0], images[1])


@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("per_row", [False, True], ids=["one scale", "one a row"])
def test_fp8_weights_have_their_scales(medium: Path, tmp_path: Path, spelling: str, per_row: bool):  # noqa: FBT001
    """A parameter is its FP8 value times its scale, with both spellings, even if q, k and v share a tensor."""
    state = stability.transformer(states(medium)["transformer"])
    scaled: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for name, value in state.items():
        scaled[name] = expected[name] = value.float()
        if value.ndim == 2 and name.endswith("weight"):
            scale = value.float().abs().amax(1, keepdim=True) / 448 if per_row else value.float().abs().max() / 448
            number = (value.float() / scale).to(torch.float8_e4m3fn)
            stem = name.removesuffix("weight")
            scaled |= {name: number, stem + spelling: scale, stem + _INPUT[spelling]: torch.ones(())}
            expected[name] = number.float() * scale
    scaled["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    prefixed = {stability.PREFIXES["transformer"] + name: value for name, value in scaled.items()}
    file = write(tmp_path / "scaled.safetensors", prefixed)
    found = values(open_checkpoint(str(medium), None, [file]), "transformer")
    converted = convert_sd3_transformer_checkpoint_to_diffusers(expected)
    assert found.keys() == converted.keys()
    for name, value in found.items():
        assert torch.equal(value, converted[name]), name


def test_fp8_weights_without_scales_are_read_unchanged(medium: Path, tmp_path: Path):
    """This holds if the file has no scales at all."""
    state = {name: value.to(torch.float8_e4m3fn) for name, value in states(medium)["transformer"].items()}
    file = write(tmp_path / "fp8.safetensors", stability.transformer(state))
    for name, value in values(open_checkpoint(str(medium), None, [file]), "transformer").items():
        assert torch.equal(value, state[name].float()), name


def test_separate_files_replace_text_encoders(medium: Path, tmp_path: Path):
    """A T5 in scaled FP8 and a CLIP replace those of the directory."""
    t5 = states(medium)["text_encoder_3"]
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    number = (t5[name].float() / 0.01).to(torch.float8_e4m3fn)
    scaled = {**t5, name: number, name.replace("weight", "scale_weight"): torch.tensor(0.01)}
    scaled |= {
        "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn),
        "encoder.embed_tokens.weight": t5["shared.weight"].clone(),
    }
    clip = {name: value.float() * 2 for name, value in states(medium)["text_encoder_2"].items()}
    files = [write(tmp_path / "t5xxl_fp8.safetensors", scaled), write(tmp_path / "clip_g.safetensors", clip)]
    checkpoint = open_checkpoint(str(medium), None, files)
    assert checkpoint.replaced.keys() == {"text_encoder_2", "text_encoder_3"}
    assert torch.equal(values(checkpoint, "text_encoder_3")[name], number.float() * 0.01)
    assert torch.equal(values(checkpoint, "text_encoder_2")["text_projection.weight"], clip["text_projection.weight"])


def test_the_revision_covers_the_weights_that_are_read(medium: Path, tmp_path: Path):
    """Another file gives another revision."""
    state = stability.single_file({"vae": states(medium)["vae"]})
    first, second = write(tmp_path / "a.safetensors", state), tmp_path / "b.safetensors"
    write(second, {name: value * 2 for name, value in state.items()})
    plain, one, other = (open_checkpoint(str(medium), None, files).revision for files in ([], [first], [second]))
    assert len({plain, one, other}) == 3
    assert open_checkpoint(str(medium), None, [first]).revision == one


@pytest.mark.parametrize("name", ["sd3.5-large", "sd3.5-medium"])
def test_a_single_file_of_real_size_has_all_parameters(tmp_path: Path, name: str):
    """The transformer has the real shapes and Stability's names, in a sparse file."""
    with torch.device("meta"):
        network = SD3Transformer2DModel(**ARCHITECTURES[name].transformer)
    spelled = stability.transformer({name: value.to(torch.bfloat16) for name, value in network.state_dict().items()})
    directory = tmp_path / name
    (directory / "transformer").mkdir(parents=True)
    network.save_config(directory / "transformer")
    file = _write_sparse(tmp_path / "sparse.safetensors", spelled)
    checkpoint = Checkpoint(name, directory, open_checkpoint("sd35-mini").card, (file,))
    loaded = values(checkpoint, "transformer", torch.bfloat16)
    assert {key: value.shape for key, value in loaded.items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }


def _write_sparse(path: Path, state: dict[str, Tensor]) -> Path:
    """Write a sparse safetensors file: a header, followed by zeros that take no disk space."""
    header, end = {}, 0
    for name, value in state.items():
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [end, end + 2 * value.numel()]}
        end += 2 * value.numel()
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def _truncate(path: Path, state: dict[str, Tensor]) -> None:
    write(path, state)
    path.write_bytes(path.read_bytes()[:-100])


def _without(path: Path, state: dict[str, Tensor]) -> None:
    write(path, {name: value for name, value in state.items() if "joint_blocks.1.x_block.mlp.fc1" not in name})


def _narrow(path: Path, state: dict[str, Tensor]) -> None:
    name = "model.diffusion_model.context_embedder.weight"
    write(path, {**state, name: state[name][:, :32]})


def _unscaled(path: Path, state: dict[str, Tensor]) -> None:
    name = "model.diffusion_model.context_embedder.weight"
    mark = {"model.diffusion_model.scaled_fp8": torch.empty(0)}
    write(path, {**state, name: state[name].to(torch.float8_e4m3fn), **mark})


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path, state: torch.save(state, path), "expected a safetensors file, found a pickle in a zip file"),
        (lambda path, _: path.write_bytes(b"\x80\x04K*."), "found a pickle; pickles can execute code"),
        (lambda path, _: path.write_text("<!doctype html><p>401"), "found a web page"),
        (lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path, _: path.write_bytes(b""), "found 0 bytes"),
        (_truncate, r"bytes, found \d+; download or copy the file again"),
        (
            lambda path, _: write(path, {"unet.weight": torch.ones(2)}),
            "expected weights of SD3.5 .*, found unet.weight",
        ),
        (_without, "found one without parameters transformer_blocks.1.ff.net.0.proj.bias"),
        (_narrow, r"expected context_embedder.weight of shape \[128, 96\], found \[128, 32\]"),
        (_unscaled, "expected a scale for context_embedder.weight"),
        (
            lambda path, state: write(
                path, {**state, "model.diffusion_model.joint_blocks.0.x_block.lora": torch.ones(1)}
            ),
            "with unknown parameters joint_blocks.0.x_block.lora",
        ),
    ],
)
def test_an_invalid_weight_file_is_refused(
    medium: Path, tmp_path: Path, damage: Callable[[Path, dict[str, Tensor]], object], why: str
):
    """The error names the file, and says what was expected and what was found."""
    file = tmp_path / "sd3.5_medium.safetensors"
    damage(file, stability.single_file({"transformer": states(medium)["transformer"]}))
    with pytest.raises(CheckpointError, match=rf"sd3.5_medium.safetensors: .*{why}"):
        load_network(open_checkpoint(str(medium), None, [file]), "transformer", torch.float32)


def test_incompatible_files_are_refused(medium: Path, tmp_path: Path):
    """Two files with the same part, a CLIP of the wrong width, a file with several checkpoints or with graphs."""
    vae = stability.single_file({"vae": states(medium)["vae"]})
    one, two = (write(tmp_path / f"{name}.safetensors", vae) for name in ("one", "two"))
    with pytest.raises(CheckpointError, match=r"one.safetensors and .*two.safetensors both contain the vae"):
        open_backend("diffusers", open_checkpoint(str(medium), None, [one, two]), Options(device="cpu"))
    table = {"text_model.embeddings.token_embedding.weight": torch.ones(4, 7)}
    wrong_width = write(tmp_path / "clip.safetensors", table)
    with pytest.raises(CheckpointError, match="expected a CLIP of width 32 or 32 for medium, found 7"):
        open_backend("diffusers", open_checkpoint(str(medium), None, [wrong_width]), Options(device="cpu"))
    with pytest.raises(InvalidSetting, match="weights: allowed only with one checkpoint; got 2"):
        open_checkpoints(load_settings({"checkpoints": ("sd35-mini", str(medium)), "weights": (str(one),)}))
    with pytest.raises(InvalidSetting, match="'onnx', which reads graphs and not the weight files"):
        open_backend("onnx", open_checkpoint("sd35-mini", None, [one]), Options())


def test_a_single_file_is_completed_by_the_base_checkpoint(medium: Path, tmp_path: Path):
    """The result has the file's name and weights, and the base checkpoint's directory."""
    parts = {"transformer": states(medium)["transformer"]}
    file = write(tmp_path / "mine.safetensors", stability.single_file(parts))
    found = open_checkpoint(str(file), base_checkpoint=str(medium))
    assert (found.name, found.directory, set(found.replaced)) == ("mine", medium, {"transformer"})


def test_a_single_file_alone_requires_its_registered_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its layers identify the model. The error has the command that downloads it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with torch.device("meta"):
        network = SD3Transformer2DModel(**ARCHITECTURES["sd3.5-medium"].transformer)
    file = _write_sparse(tmp_path / "mine.safetensors", stability.transformer(network.state_dict()))
    with pytest.raises(CheckpointError, match=r"sd3.5-medium, needed for .* file of mine .*: sd35 pull sd3.5-medium"):
        open_checkpoint(str(file))
    small = write(tmp_path / "small.safetensors", {"joint_blocks.0.x_block.attn.qkv.weight": torch.ones(6, 2)})
    with pytest.raises(CheckpointError, match="found 1 without a second attention; for another architecture"):
        open_checkpoint(str(small))
