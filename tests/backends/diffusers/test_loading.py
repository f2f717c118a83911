"""Every kind of file that weights come in, loaded as what it is, or refused in words."""

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
    """A checkpoint of Medium's kind, small, in bfloat16."""
    directory = tmp_path_factory.mktemp("loading") / "medium"
    synthesise(SMALL, directory, "bfloat16", lambda *_: None)
    return directory


def states(directory: Path) -> dict[str, dict[str, Tensor]]:
    """The parameters of each part, as they are stored."""
    return {part: load_file(next((directory / part).glob("*.safetensors"))) for part in PARTS}


def write(path: Path, state: dict[str, Tensor]) -> Path:
    """A safetensors file."""
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def values(checkpoint: Checkpoint, part: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A network's parameters as they are loaded."""
    return load_network(checkpoint, part, dtype).state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_networks_are_those_of_from_pretrained(dtype: torch.dtype):
    """Every parameter and buffer is equal, also what stays in float32, and the tokenizers and the scheduler are."""
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


def test_what_is_stored_as_it_is_computed_is_mapped_not_copied(medium: Path):
    """The parameters lie in one mapping of the file, at its offsets."""
    network = values(open_checkpoint(str(medium)), "transformer", torch.bfloat16)
    stored = open_checkpoint(str(medium)).weights("transformer")
    starts = {value.data_ptr() - stored[name].stored.start for name, value in network.items()}
    assert len(starts) == 1


def test_the_spellings_are_those_that_diffusers_reads(medium: Path):
    """A single file's transformer and autoencoder become, name by name, what Diffusers' converters make of them."""
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
def test_a_single_file_draws_what_its_directory_draws(medium: Path, tmp_path: Path, held: tuple[str, ...]):
    """With and without encoders; what the file does not hold comes from the directory."""
    parts = {part: state for part, state in states(medium).items() if part in held}
    spelled = stability.single_file(parts) if len(held) > 1 else stability.transformer(parts["transformer"])
    for part in held:  # what is in the file must not be needed in the directory
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
def test_scales_of_fp8_are_honoured(medium: Path, tmp_path: Path, spelling: str, per_row: bool):  # noqa: FBT001
    """A parameter is its FP8 number times its scale, in both spellings, also where q, k and v share a tensor."""
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
    wanted = convert_sd3_transformer_checkpoint_to_diffusers(expected)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.equal(value, wanted[name]), name


def test_plain_fp8_is_read_as_the_numbers_it_holds(medium: Path, tmp_path: Path):
    """A file without scales means its numbers."""
    state = {name: value.to(torch.float8_e4m3fn) for name, value in states(medium)["transformer"].items()}
    file = write(tmp_path / "fp8.safetensors", stability.transformer(state))
    for name, value in values(open_checkpoint(str(medium), None, [file]), "transformer").items():
        assert torch.equal(value, state[name].float()), name


def test_text_encoders_come_in_files_of_their_own(medium: Path, tmp_path: Path):
    """A T5 in scaled FP8 and a CLIP beside it replace the directory's, which are then not looked at."""
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


def test_the_revision_is_of_the_weights_that_are_read(medium: Path, tmp_path: Path):
    """Another file is another revision; what it replaces in the directory is no part of it."""
    state = stability.single_file({"vae": states(medium)["vae"]})
    first, second = write(tmp_path / "a.safetensors", state), tmp_path / "b.safetensors"
    write(second, {name: value * 2 for name, value in state.items()})
    plain, one, other = (open_checkpoint(str(medium), None, files).revision for files in ([], [first], [second]))
    assert len({plain, one, other}) == 3
    assert open_checkpoint(str(medium), None, [first]).revision == one


@pytest.mark.parametrize("name", ["sd3.5-large", "sd3.5-medium"])
def test_real_dimensions_have_every_parameter(tmp_path: Path, name: str):
    """A transformer of the real shapes, in a file that is a hole, is taken from Stability's spelling, all of it."""
    with torch.device("meta"):
        network = SD3Transformer2DModel(**ARCHITECTURES[name].transformer)
    spelled = stability.transformer({name: value.to(torch.bfloat16) for name, value in network.state_dict().items()})
    directory = tmp_path / name
    (directory / "transformer").mkdir(parents=True)
    network.save_config(directory / "transformer")
    file = _hollow(tmp_path / "hole.safetensors", spelled)
    checkpoint = Checkpoint(name, directory, open_checkpoint("sd35-mini").card, (file,))
    loaded = values(checkpoint, "transformer", torch.bfloat16)
    assert {key: value.shape for key, value in loaded.items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }


def _hollow(path: Path, state: dict[str, Tensor]) -> Path:
    """A safetensors file of zeros that takes no room on the disk: a header, then a hole."""
    header, end = {}, 0
    for name, value in state.items():
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [end, end + 2 * value.numel()]}
        end += 2 * value.numel()
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def _cut(path: Path, state: dict[str, Tensor]) -> None:
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
    ("spoil", "why"),
    [
        (lambda path, state: torch.save(state, path), "expected a safetensors file, found a pickle in a zip file"),
        (lambda path, _: path.write_bytes(b"\x80\x04K*."), "found a pickle; pickles execute code"),
        (lambda path, _: path.write_text("<!doctype html><p>401"), "found a web page"),
        (lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path, _: path.write_bytes(b""), "found 0 bytes"),
        (_cut, "bytes, found .*; it is truncated"),
        (
            lambda path, _: write(path, {"unet.weight": torch.ones(2)}),
            "expected weights of SD3.5 .*, found unet.weight",
        ),
        (_without, "found one without transformer_blocks.1.ff.net.0.proj.bias"),
        (_narrow, r"expected context_embedder.weight of \[128, 96\], found \[128, 32\]"),
        (_unscaled, "expected a scale for context_embedder.weight"),
        (
            lambda path, state: write(
                path, {**state, "model.diffusion_model.joint_blocks.0.x_block.lora": torch.ones(1)}
            ),
            "with joint_blocks.0.x_block.lora",
        ),
    ],
)
def test_what_is_not_a_whole_file_of_this_model_is_refused(
    medium: Path, tmp_path: Path, spoil: Callable[[Path, dict[str, Tensor]], object], why: str
):
    """The file, what was expected and what was found are named, whatever it is."""
    file = tmp_path / "sd3.5_medium.safetensors"
    spoil(file, stability.single_file({"transformer": states(medium)["transformer"]}))
    with pytest.raises(CheckpointError, match=rf"sd3.5_medium.safetensors: .*{why}"):
        load_network(open_checkpoint(str(medium), None, [file]), "transformer", torch.float32)


def test_files_that_do_not_go_together_are_refused(medium: Path, tmp_path: Path):
    """Two with the same part, a CLIP of no such width, one beside several checkpoints, any beside the graphs."""
    vae = stability.single_file({"vae": states(medium)["vae"]})
    one, two = (write(tmp_path / f"{name}.safetensors", vae) for name in ("one", "two"))
    with pytest.raises(CheckpointError, match=r"one.safetensors and .*two.safetensors both hold the vae"):
        open_backend("diffusers", open_checkpoint(str(medium), None, [one, two]), Options(device="cpu"))
    table = {"text_model.embeddings.token_embedding.weight": torch.ones(4, 7)}
    narrow = write(tmp_path / "clip.safetensors", table)
    with pytest.raises(CheckpointError, match="expected a CLIP of width 32 or 32 for medium, found 7"):
        open_backend("diffusers", open_checkpoint(str(medium), None, [narrow]), Options(device="cpu"))
    with pytest.raises(InvalidSetting, match="weights: got files beside 2 checkpoints"):
        open_checkpoints(load_settings({"checkpoints": ("sd35-mini", str(medium)), "weights": (str(one),)}))
    with pytest.raises(InvalidSetting, match="the onnx backend reads graphs"):
        open_backend("onnx", open_checkpoint("sd35-mini", None, [one]), Options())


def test_a_single_file_takes_what_it_lacks_from_its_companion(medium: Path, tmp_path: Path):
    """Named by its file, it is the companion with the file's weights."""
    parts = {"transformer": states(medium)["transformer"]}
    file = write(tmp_path / "mine.safetensors", stability.single_file(parts))
    found = open_checkpoint(str(file), base_checkpoint=str(medium))
    assert (found.name, found.directory, set(found.replaced)) == ("mine", medium, {"transformer"})


def test_a_single_file_by_itself_asks_for_the_variant_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its layers tell which; where that is not on disk, the command that fetches it is named."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with torch.device("meta"):
        network = SD3Transformer2DModel(**ARCHITECTURES["sd3.5-medium"].transformer)
    file = _hollow(tmp_path / "mine.safetensors", stability.transformer(network.state_dict()))
    with pytest.raises(CheckpointError, match=r"sd3.5-medium, from which mine takes .*: sd35 pull sd3.5-medium"):
        open_checkpoint(str(file))
    small = write(tmp_path / "small.safetensors", {"joint_blocks.0.x_block.attn.qkv.weight": torch.ones(6, 2)})
    with pytest.raises(CheckpointError, match="found 1; for another architecture"):
        open_checkpoint(str(small))
