"""`sd35 replay`: makes an image again and tells whether it is the same."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.cli.generate import progress_bar
from sd35.engine.model_info import COMPILED, TILED
from sd35.errors import CheckpointError, NotReplayable
from sd35.generation.replay import StoredImage, Verdict, read_stored_image
from sd35.generation.replay import replay as make_again
from sd35.request import Request
from sd35.settings import Settings
from sd35.startup import open_checkpoints, open_model_pool


def replay(file: Path, settings_with: Callable[[Mapping[str, str]], Settings], *, as_json: bool) -> None:
    """Print the verdict; exit with 1 where the image is different. `settings_with` puts flags over what it is given.

    Raises NotReplayable, CheckpointError where the model is not here, and what making an image raises.
    """
    try:
        stored_image = read_stored_image(file.read_bytes())
    except (OSError, NotReplayable) as error:
        raise NotReplayable(f"{file} cannot be replayed: {error}") from error
    maker, request = stored_image.record.maker, stored_image.record.request
    profile = request.profile.split("/")
    settings = settings_with(
        {
            "backend": maker.backend,
            "precision": maker.precision,
            "tiled_decode": "on" if TILED in profile else "off",
            "torch_compile": "on" if COMPILED in profile else "off",
        }
    )
    checkpoint = _maker_of(request, open_checkpoints(settings), file)
    with progress_bar() as progress:
        bar = progress.add_task(f"making {file.name} again", total=request.steps)
        with open_model_pool(settings, [checkpoint]) as pool:
            verdict = make_again(stored_image, pool, lambda now: progress.update(bar, completed=now.step))
    print(json.dumps({"file": str(file), **verdict._asdict()}) if as_json else _in_words(file, stored_image, verdict))
    if not verdict.is_same:
        sys.exit(1)


def _maker_of(request: Request, checkpoints: list[Checkpoint], file: Path) -> Checkpoint:
    """The checkpoint that made an image: the one of its name."""
    named = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    if request.model not in named:
        here = ", ".join(named)
        raise CheckpointError(
            f"{file} was made with {request.model!r}; here is only {here}; name it, or its directory, with --checkpoint"
        )
    return named[request.model]


def _in_words(file: Path, stored_image: StoredImage, verdict: Verdict) -> str:
    lines = [f"{file}: {verdict.outcome}"]
    if verdict.outcome != "same bytes" and verdict.max_difference is not None:
        lines.append(f"  differs by {verdict.max_difference} of 255 at most, {verdict.mean_difference:.3f} on average")
    lines += [f"  {change}" for change in verdict.changed]
    if not verdict.is_same and not verdict.changed:
        lines.append(
            "  nothing that the file names has changed: it was edited, or another processor computes differently"
        )
    lines.append(f"  digest {stored_image.record.request.digest}")
    return "\n".join(lines)
