"""`sd35 generate`: images to files, one after the other."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import InvalidSetting, UnknownModel
from sd35.generation.model_pool import EncodedImage, ModelPool
from sd35.generation.params import GenerationParams, draw_seed
from sd35.request import SEED
from sd35.settings import Settings
from sd35.startup import open_checkpoints, open_model_pool


def generate(settings: Settings, wanted: GenerationParams, output: Path, count: int, *, as_json: bool) -> None:
    """Make `count` images and write them. Raises what the engine and the settings raise."""
    checkpoint = _chosen(open_checkpoints(settings), wanted.model)
    progress = progress_bar()
    with progress:
        loading = progress.add_task("loading the model", total=None)
        with open_model_pool(settings, [checkpoint]) as pool:
            first = pool.resolve(replace(wanted, seed=draw_seed() if wanted.seed is None else wanted.seed)).seed
            progress.remove_task(loading)
            for index in range(count):
                seed = (first + index) % (SEED[1] + 1)
                path = output if count == 1 else output.with_stem(f"{output.stem}-{index + 1}")
                finished, took_s = _make(pool, replace(wanted, seed=seed), progress, path.name)
                _write(path, finished.png)
                print(_as_json(path, finished, took_s) if as_json else _as_text(path, finished, took_s), flush=True)


def progress_bar() -> Progress:
    """A bar on stderr, where that is a terminal; it leaves nothing behind."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _chosen(checkpoints: list[Checkpoint], model: str | None) -> Checkpoint:
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    if model is not None and model not in by_name:
        raise UnknownModel(model, list(by_name))
    return checkpoints[0] if model is None else by_name[model]


def _make(pool: ModelPool, wanted: GenerationParams, progress: Progress, name: str) -> tuple[EncodedImage, float]:
    request = pool.resolve(wanted)
    bar = progress.add_task(name, total=request.steps)
    generated = pool.submit(request, lambda now: progress.update(bar, completed=now.step)).future.result()
    progress.remove_task(bar)
    return pool.encode(generated), generated.took_s


def _write(path: Path, content: bytes) -> None:
    """All of a file or nothing. Raises InvalidSetting where it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise InvalidSetting(f"--output: {path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _as_json(path: Path, finished: EncodedImage, took_s: float) -> str:
    request, maker = finished.record.request, finished.record.maker
    return json.dumps(
        {
            "file": str(path),
            "digest": request.digest,
            "request": json.loads(request.canonical),
            "drawn_width": maker.drawn_width,
            "drawn_height": maker.drawn_height,
            "cut_off": maker.cut_off,
            "took_ms": round(1000 * took_s),
        }
    )


def _as_text(path: Path, finished: EncodedImage, took_s: float) -> str:
    request, maker = finished.record.request, finished.record.maker
    notes = [f"{path}: seed {request.seed}, {request.width}x{request.height}, {took_s:.1f} s"]
    if finished.is_enlarged:
        notes.append(f"drawn at {maker.drawn_width}x{maker.drawn_height} and enlarged")
    if maker.cut_off:
        notes.append(f"too long for the text encoders, which read a part: {', '.join(maker.cut_off)}")
    return "; ".join(notes)
