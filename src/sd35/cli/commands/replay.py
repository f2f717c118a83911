"""The command `sd35 replay`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.cli.options import PIPELINE, AsJson, SettingFlags, with_settings
from sd35.cli.progress import count_bar
from sd35.engine.model_info import COMPILED, TILED
from sd35.errors import CheckpointError, NotReplayable
from sd35.generation.model_pool import EncodedImage
from sd35.generation.replay import Verdict, read_stored_image
from sd35.generation.replay import replay as replay_image
from sd35.request import Request
from sd35.startup import open_checkpoints, open_model_pool

app = typer.Typer()


@app.command()
@with_settings(*PIPELINE)
def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="PNG file that sd35 wrote. Other formats do not store exact pixels.")
    ],
    *,
    as_json: AsJson = False,
    flags: SettingFlags,
) -> None:
    """Generate an image again from the record in its file, and compare the two.

    The result is "same bytes", "same image" (no pixel differs by more than 2 of 255, and the average difference is at
    most 0.1), or "different", with the reasons. The exit code is 0 if the image is the same, 1 if it is different or
    cannot be generated, and 2 if the file has no record. Backend and precision are those in the record, unless you give
    other flags.

    [bold]Examples[/bold]

      sd35 replay out.png
      sd35 replay out.png --backend diffusers --json
    """
    stored_image = _read_image(file)
    maker, request = stored_image.record.maker, stored_image.record.request
    profile = request.profile.split("/")
    settings = flags.load(
        {
            "backend": maker.backend,
            "precision": maker.precision,
            "tiled_decode": "on" if TILED in profile else "off",
            "torch_compile": "on" if COMPILED in profile else "off",
        }
    )
    checkpoint = _find_checkpoint(request, open_checkpoints(settings), file)
    with count_bar() as progress:
        bar = progress.add_task(f"replaying {file.name}", total=request.steps)
        with open_model_pool(settings, [checkpoint]) as pool:
            verdict = replay_image(stored_image, pool, lambda now: progress.update(bar, completed=now.step))
    print(json.dumps({"file": str(file), **verdict._asdict()}) if as_json else _as_text(file, stored_image, verdict))
    if not verdict.is_same:
        sys.exit(1)


def _read_image(file: Path) -> EncodedImage:
    """Read a PNG file with a record. Raises NotReplayable if it cannot be read or has no complete record."""
    try:
        return read_stored_image(file.read_bytes())
    except OSError as error:
        raise NotReplayable(f"{file} cannot be read ({error.strerror or error}); check the path") from error
    except NotReplayable as error:
        raise NotReplayable(f"{file} cannot be replayed: {error}") from error


def _find_checkpoint(request: Request, checkpoints: list[Checkpoint], file: Path) -> Checkpoint:
    """Return the checkpoint that a request names. Raises CheckpointError if it is not among those loaded."""
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    if request.model not in by_name:
        names = ", ".join(by_name)
        raise CheckpointError(
            f"{file} was generated with the model {request.model!r}, but the setting checkpoints has {names}; pass"
            " the name or the directory of that model with --checkpoint"
        )
    return by_name[request.model]


def _as_text(file: Path, stored_image: EncodedImage, verdict: Verdict) -> str:
    """Return the lines that are printed without --json."""
    lines = [f"{file}: {verdict.outcome}"]
    if verdict.outcome != "same bytes" and verdict.max_difference is not None:
        lines.append(
            f"  pixels differ by at most {verdict.max_difference} of 255, by {verdict.mean_difference:.3f} on average"
        )
    lines += [f"  {change}" for change in verdict.changed]
    if not verdict.is_same and not verdict.changed:
        lines.append("  the recorded versions are the same: the file was edited, or the processors compute differently")
    lines.append(f"  digest {stored_image.record.request.digest}")
    return "\n".join(lines)
