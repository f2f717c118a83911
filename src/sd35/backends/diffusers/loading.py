"""Load a checkpoint's networks into PyTorch with one copy of the weights, memory-mapped if possible.

A network is created on the meta device, without memory. Each parameter then becomes a view of its memory-mapped file.
Parameters are copied only if they change: if they are cast, scaled (FP8), or have their halves swapped.
"""

import mmap
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.weights.parameters import Weight
from sd35.checkpoints.weights.safetensors_file import Stored
from sd35.errors import CheckpointError, Sd35Error

_DTYPES: Mapping[str, torch.dtype] = {
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
}  # fmt: skip
_OPTIONAL = {"encoder.embed_tokens.weight"}  # a second name of T5's embedding, which some files contain
_DIFFUSERS: Mapping[str, Any] = {"transformer": SD3Transformer2DModel, "vae": AutoencoderKL}
_TRANSFORMERS: Mapping[str, tuple[Any, Any]] = {
    "text_encoder": (CLIPTextModelWithProjection, CLIPTextConfig),
    "text_encoder_2": (CLIPTextModelWithProjection, CLIPTextConfig),
    "text_encoder_3": (T5EncoderModel, T5Config),
}

Load: TypeAlias = Callable[[Checkpoint, str, torch.dtype], nn.Module]
"""A function such as `load_network`: loads a network, given the checkpoint, the network's name and the dtype."""


def load_pipeline(
    checkpoint: Checkpoint, dtype: torch.dtype, *, without: Collection[str] = (), load: Load | None = None
) -> StableDiffusion3Pipeline:
    """Load a pipeline on the CPU with its weights in `dtype`. The result equals that of Diffusers' `from_pretrained`.

    Args:
        checkpoint: The checkpoint.
        dtype: The format of the weights.
        without: Names of networks that are not loaded. They are None in the result.
        load: Loads each other network. The default is `load_network`.

    Raises:
        CheckpointError: A file is missing or damaged, or belongs to another network.
    """
    folder = checkpoint.directory
    names = (*_TRANSFORMERS, *_DIFFUSERS)
    parts = {name: None if name in without else (load or load_network)(checkpoint, name, dtype) for name in names}
    try:
        return StableDiffusion3Pipeline(
            **parts,
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True),
            tokenizer_3=AutoTokenizer.from_pretrained(folder / "tokenizer_3", local_files_only=True),
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the scheduler or a tokenizer in {folder} cannot be loaded: {error}; if files are missing or damaged,"
            " download the checkpoint again"
        ) from error


def load_network(
    checkpoint: Checkpoint,
    part: str,
    dtype: torch.dtype,
    convert: Callable[[str, Tensor], Tensor] = lambda _, value: value,
) -> nn.Module:
    """Load one network. `convert` gets each parameter's name and value, and returns the value to store.

    Raises CheckpointError if a file is missing or damaged, or belongs to another network.
    """
    try:
        network: nn.Module = _empty_network(checkpoint, part)
    except Sd35Error:
        raise
    except Exception as error:  # libraries raise many types of errors for invalid configurations
        file = checkpoint.directory / part / "config.json"
        raise CheckpointError(
            f"{file} is not a valid configuration of {part} ({type(error).__name__}: {error}); correct it, or download"
            " the checkpoint again"
        ) from error
    weights = checkpoint.weights(part)
    _check_names(checkpoint, part, network, weights)
    files = MappedFiles()
    # Transformers keeps these modules, such as T5's `wo`, in float32 if the rest is in float16.
    float32_modules = set(getattr(network, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    expected = network.state_dict()
    values = {}
    for name, weight in weights.items():
        if name in expected:  # skips the second name of T5's embedding
            own_dtype = dtype if float32_modules.isdisjoint(name.split(".")) else torch.float32
            values[name] = convert(name, _read_parameter(name, weight, expected[name].shape, own_dtype, files))
    network.load_state_dict(values, strict=False, assign=True)  # not strict, because buffers are filled later
    if part == "text_encoder_3":  # one parameter with two names
        network.get_submodule("encoder.embed_tokens").weight = network.get_submodule("shared").weight
    _fill_buffers(network)
    files.release_pages()
    network.requires_grad_(requires_grad=False).eval()
    return network


class MappedFiles:
    """Memory-mapped weight files. Pages are read on first access, and shared by all processes that map the file."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def tensor(self, stored: Stored) -> Tensor:
        """Return a view of a stored tensor. Writing to the view does not change the file.

        Raises CheckpointError if the tensor's dtype is not supported.
        """
        if stored.file not in self._maps:
            with stored.file.open("rb") as file:
                self._maps[stored.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if stored.dtype not in _DTYPES:
            raise CheckpointError(
                f"{stored.file}: expected tensors in {', '.join(_DTYPES)}, found {stored.dtype}; convert the"
                " file, or use another"
            )
        if stored.nbytes == 0:  # torch.frombuffer does not allow an empty buffer
            return torch.empty(stored.shape, dtype=_DTYPES[stored.dtype])
        flat = torch.frombuffer(self._maps[stored.file], dtype=torch.uint8, count=stored.nbytes, offset=stored.start)
        if stored.start % _DTYPES[stored.dtype].itemsize:
            flat = flat.clone()  # older versions of the format allowed unaligned tensors
        return flat.view(_DTYPES[stored.dtype]).view(stored.shape)

    def release_pages(self) -> None:
        """Remove the pages of the files from this process's memory. Tensors stay valid.

        The pages stay in the system's file cache. The next access to a tensor maps them again.
        """
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)


def _empty_network(checkpoint: Checkpoint, part: str) -> Any:  # noqa: ANN401  Diffusers' and Transformers' classes
    """Create a network from its configuration on the meta device, without memory for its parameters."""
    config = checkpoint.config(part)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own, which users cannot act on
        if part in _DIFFUSERS:
            return _DIFFUSERS[part].from_config(config)
        network, settings = _TRANSFORMERS[part]
        return network(settings.from_dict(config))


def _check_names(checkpoint: Checkpoint, part: str, network: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Raise CheckpointError if the files lack parameters of a network or contain unknown ones."""
    expected = network.state_dict().keys()
    missing, unknown = sorted(expected - weights.keys() - _OPTIONAL), sorted(weights.keys() - expected - _OPTIONAL)
    if not missing and not unknown:
        return
    file = next(iter(weights.values())).stored.file if weights else checkpoint.directory / part
    raise CheckpointError(
        f"{file}: expected the {part} that {checkpoint.directory / part / 'config.json'} describes, found one"
        f" {_phrase('without parameters', missing)}{' and ' if missing and unknown else ''}"
        f"{_phrase('with unknown parameters', unknown)}; use weights and configuration of the same model"
    )


def _phrase(start: str, names: list[str]) -> str:
    """Return `start` and up to three names, such as "without parameters a, b, c and 2 more". Empty without names."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{start} {shown}" if names else ""


def _read_parameter(name: str, weight: Weight, shape: torch.Size, dtype: torch.dtype, files: MappedFiles) -> Tensor:
    """Return a parameter in `dtype`, as a view of the file if its bytes do not change.

    Raises CheckpointError if the stored tensor has another shape or an unsupported dtype.
    """
    value = _own_part(files.tensor(weight.stored), weight)
    if weight.scale:
        scale = files.tensor(weight.scale).float()
        if scale.numel() > 1:  # one per row
            scale = _own_part(scale, weight).reshape(-1, *(1 for _ in value.shape[1:]))
        value = (value.float() * scale).to(dtype)
    if weight.swapped:  # the file stores the halves in the opposite order
        first, second = value.chunk(2)
        value = torch.cat([second, first])
    # Axes of length 1 may differ: single files store linear layers of the autoencoder as 1x1 convolutions.
    if value.shape != shape and value.squeeze().shape != torch.Size(size for size in shape if size > 1):
        raise CheckpointError(
            f"{weight.stored.file}: expected {name} of shape {list(shape)}, found {list(value.shape)}; use weights and"
            " configuration of the same model"
        )
    return value.reshape(shape).to(dtype)


def _own_part(value: Tensor, weight: Weight) -> Tensor:
    """Return the parameter's rows of a tensor that several parameters share, such as q, k and v.

    Raises CheckpointError if the rows do not divide evenly.
    """
    if len(value) % weight.of:
        raise CheckpointError(
            f"{weight.stored.file}: expected a tensor that divides into {weight.of} equal parts, found shape"
            f" {list(value.shape)}; the file may be damaged, so download it again"
        )
    return value.chunk(weight.of)[weight.index] if weight.of > 1 else value


def _fill_buffers(network: nn.Module) -> None:
    """Fill the buffers that files do not contain: CLIP's position ids, which count from 0."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                assert name == "position_ids", name
                setattr(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
