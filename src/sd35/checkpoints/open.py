"""Open a checkpoint by its registered name, or by the path of a directory or a file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sd35.checkpoints.card import Card, read_card
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.graphs.nvidia import OfficialGraphs, TransformerPrecision, find_graphs
from sd35.checkpoints.hub.cache import cache_paths
from sd35.checkpoints.layout import CARD_FILE, PARTS, missing_files
from sd35.checkpoints.registry import EMBEDDED, RegisteredCheckpoint, load_registry
from sd35.checkpoints.weights.parameters import weights_of_file
from sd35.errors import CheckpointError, InvalidSetting
from sd35.parsing import shown

_EMBEDDED_DIRECTORY = Path(__file__).parent / "embedded" / EMBEDDED


def open_checkpoint(
    name_or_path: str,
    registry_file: Path | None = None,
    weights: Sequence[Path] = (),
    base_checkpoint: str | None = None,
    transformer: TransformerPrecision = "auto",
) -> Checkpoint:
    """Open a checkpoint: a registered name, a directory in the Diffusers layout or NVIDIA's, or a single file.

    Args:
        name_or_path: What to open. A registered name takes precedence over a directory of the same name, which
            `./NAME` opens.
        registry_file: The user's file of registered checkpoints.
        weights: Files that are read instead of the checkpoint's own weights.
        base_checkpoint: A registered name, or a directory in the Diffusers layout. It provides the configurations and
            tokenizers that NVIDIA's graphs and single files lack, and the parts that a single file lacks. The default
            for a single file is the built-in checkpoint of the same architecture.
        transformer: The precision of NVIDIA's transformer graph. "auto" selects an existing one.

    Raises:
        InvalidSetting: The path does not exist, or the registry file is not valid.
        CheckpointError: The path is of another kind, or a part is missing or damaged.
    """
    try:
        files = tuple(path.expanduser().resolve() for path in weights)
        checkpoint = _open_name(name_or_path, registry_file, files)
        checkpoint = checkpoint or _open_path(name_or_path, registry_file, files, base_checkpoint, transformer)
    except (OSError, RuntimeError) as error:  # RuntimeError: from `expanduser`, and from circular links
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"checkpoint: {shown(name_or_path)} cannot be opened: {why}; check the path") from error
    return replace(checkpoint, opened_as=name_or_path)


def _open_name(
    name: str, registry_file: Path | None, files: tuple[Path, ...] = (), *, needs_weights: bool = True
) -> Checkpoint | None:
    """Open the embedded or a registered checkpoint, or return None if `name` names neither.

    `files` replace its own weights. Without `needs_weights`, its weight files may be missing.
    """
    if name == EMBEDDED:
        return _open_directory(_EMBEDDED_DIRECTORY, EMBEDDED, Card(), files)
    entry = load_registry(registry_file).get(name)
    return _open_entry(entry, name, files, needs_weights=needs_weights) if entry else None


def _open_path(
    location: str,
    registry_file: Path | None,
    files: tuple[Path, ...],
    base_checkpoint: str | None,
    transformer: TransformerPrecision,
) -> Checkpoint:
    """Open NVIDIA's graphs, a single file, or a directory in the Diffusers layout.

    Raises InvalidSetting for anything else. The arguments are those of `open_checkpoint`; `files` are its `weights`.
    """
    path = Path(location).expanduser().resolve()
    if graphs := find_graphs(path, transformer):
        return _open_graphs(graphs, base_checkpoint, registry_file, files)
    registry = load_registry(registry_file)
    if path.is_file() and base_checkpoint:
        return replace(open_checkpoint(base_checkpoint, registry_file, (path, *files)), name=path.stem)
    if path.is_file():
        return _open_entry(registry[_identify(path)], path.stem, (path, *files))
    if not path.is_dir():
        names = ", ".join((EMBEDDED, *registry))
        raise InvalidSetting(f"checkpoint: got {location!r}; allowed: an existing directory or file, or one of {names}")
    return _open_directory(path, path.name, Card(), files)


def _open_graphs(
    graphs: OfficialGraphs, base_checkpoint: str | None, registry_file: Path | None, files: tuple[Path, ...]
) -> Checkpoint:
    """Combine NVIDIA's graphs with the configurations and tokenizers of the base checkpoint.

    Raises CheckpointError if `base_checkpoint` is None or cannot be opened.
    """
    if base_checkpoint is None:
        raise CheckpointError(
            f"{graphs.directory} contains ONNX graphs, but no tokenizers or configurations; set --base-checkpoint"
            " (SD35_BASE_CHECKPOINT) to a checkpoint with them: a registered name, or a directory in Diffusers' layout"
        )
    path = Path(base_checkpoint).expanduser().resolve()
    base = _open_name(base_checkpoint, registry_file, needs_weights=False)
    base = base or _open_directory(path, path.name, Card(), ())
    card = read_card(graphs.directory / CARD_FILE) or base.card
    return Checkpoint(graphs.directory.name, base.directory, card, files, graphs)


def _open_entry(
    entry: RegisteredCheckpoint, name: str, files: tuple[Path, ...], *, needs_weights: bool = True
) -> Checkpoint:
    """Open a registered checkpoint from Hugging Face's cache, under `name`, with `files` in place of its own weights.

    Raises CheckpointError if a file is missing. Without `needs_weights`, or if `files` replace them, weight files may
    be missing.
    """
    directory = cache_paths(entry).snapshot
    checkpoint = Checkpoint(name, directory, entry.card, files)
    missing = missing_files(directory)
    if missing and directory.is_dir():
        replaced = checkpoint.replaced if needs_weights else PARTS
        missing = [path for path in missing if not (".safetensors" in path and path.split("/")[0] in replaced)]
    if missing:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        state = f"incomplete on disk: {listed} missing" if directory.is_dir() else "not on disk"
        purpose = "" if name == entry.name else f", needed for the parts that the file of {name} lacks,"
        raise CheckpointError(f"{entry.name}{purpose} is {state}; download it with: sd35 pull {entry.name}")
    return _open_directory(directory, name, entry.card, files)


def _identify(file: Path) -> str:
    """Return the name of the built-in checkpoint with the same architecture as a single file.

    Large and Large Turbo have the same shapes, so the file name decides between them. Raises CheckpointError if no
    built-in checkpoint has this architecture.
    """
    parts = weights_of_file(file)
    transformer = parts.get("transformer", {})
    layers = {name.split(".")[1] for name in transformer if name.startswith("transformer_blocks.")}
    if not layers:
        raise CheckpointError(
            f"{file}: expected a transformer, found only {', '.join(parts)}; pass it with --weights and a --checkpoint"
        )
    is_dual = any(".attn2." in name for name in transformer)
    if len(layers) == 24 and is_dual:
        return "sd3.5-medium"
    if len(layers) == 38 and not is_dual:
        return "sd3.5-large-turbo" if "turbo" in file.name.lower() else "sd3.5-large"
    raise CheckpointError(
        f"{file}: expected 38 layers (SD3.5 Large), or 24 with a second attention in some (Medium), found {len(layers)}"
        f" with{'' if is_dual else 'out'} a second attention; for another architecture, pass a directory in the"
        " Diffusers layout with --checkpoint and this file with --weights"
    )


def _open_directory(directory: Path, name: str, default_card: Card, files: tuple[Path, ...]) -> Checkpoint:
    """Open a directory in the Diffusers layout. `default_card` applies if it has no `sd35.json`."""
    if absent := [part for part in PARTS if not (directory / part).is_dir()]:
        reason = f"it has no {' and no '.join(absent)}; check the path, or copy the checkpoint again"
        raise CheckpointError(f"{directory} is not an SD3.5 checkpoint in the Diffusers layout: {reason}")
    return Checkpoint(name, directory, read_card(directory / CARD_FILE) or default_card, files)
