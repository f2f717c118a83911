"""Compares how well images follow their prompts in two precisions: `python -m training.adherence --precision fp8`.

The `onnx` backend generates the images of `training.evaluate` in float32 and in the given precision. Exits with 1 if
the share of correct images is lower by more than two percentage points.
"""

import argparse
from pathlib import Path

from sd35.backends.base import Backend
from sd35.backends.options import Options
from sd35.backends.registry import open_backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.compile.reference_sampling import generate_image, recipe_of
from sd35.settings import load_settings
from training.evaluate import BARS, held_out_scenes, judge

MAX_LOSS = 0.02
SEED = 20_000  # as in `training.evaluate`


def shares(backend: Backend, checkpoint: Checkpoint, count: int) -> dict[str, float]:
    """Return the share of correct images for each kind of prompt. Each image has its own seed."""
    recipe = recipe_of(checkpoint)
    (negative,) = backend.encode_text([""])
    found = {}
    for kind in BARS:
        verdicts = []
        for index, scene in enumerate(held_out_scenes(kind, count, SEED)):
            (positive,) = backend.encode_text([scene.caption])
            image = generate_image(backend, recipe, (positive, negative), SEED + index)
            verdicts.append(judge(image, scene).is_correct)
        found[kind] = sum(verdicts) / count
    return found


def main() -> None:
    """Generate images in both precisions and print the shares. Exits with 1 if the loss is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=["bfloat16", "fp8"], default="fp8")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--cache-dir", type=Path, default=load_settings().cache_dir)
    options = parser.parse_args()
    checkpoint = open_checkpoint(EMBEDDED)
    found = {
        precision: shares(
            open_backend("onnx", checkpoint, Options(precision=precision, cache_dir=options.cache_dir)),
            checkpoint, options.count,
        )
        for precision in ("float32", options.precision)
    }  # fmt: skip
    print(f"| Prompts ({options.count} each) | {' | '.join(found)} |\n| --- | --- | --- |")
    for kind in BARS:
        print(f"| {kind} | {' | '.join(f'{share[kind]:.1%}' for share in found.values())} |")
    if any(found["float32"][kind] - found[options.precision][kind] > MAX_LOSS for kind in BARS):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
