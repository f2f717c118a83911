"""Runs all stages of the training of sd35-mini in order: `make train`. Each stage resumes if it was interrupted.

The states of the stages are in `build/train`. The embedded checkpoint is replaced after the first stage of the
transformer, and updated after each later one.
"""

import subprocess
import sys
from pathlib import Path

WORK = Path("build/train")
CHECKPOINT = Path("src/sd35/checkpoints/embedded/sd35-mini")
AUTOENCODER = WORK / "autoencoder"


def _later_stage(stage: str) -> list[tuple[str, ...]]:
    """Return the commands of a later stage of the transformer, which starts from the checkpoint and updates it."""
    begin = ("--begin-with", str(CHECKPOINT), "--vae", str(CHECKPOINT / "vae"))
    return [
        ("training.transformer", "--stage", stage, *begin, "--out", str(WORK / stage)),
        ("training.assemble", "--stage", stage, "--transformer", str(WORK / stage), "--out", str(CHECKPOINT)),
    ]


STAGES: tuple[tuple[str, ...], ...] = (
    ("training.autoencoder", "--out", str(AUTOENCODER)),
    ("training.transformer", "--vae", str(AUTOENCODER / "mosaics/vae"), "--out", str(WORK / "first")),
    (
        *("training.assemble", "--autoencoder", str(AUTOENCODER), "--transformer", str(WORK / "first")),
        *("--out", str(CHECKPOINT)),
    ),
    *_later_stage("refined"),
    *_later_stage("sizes"),
    ("training.evaluate", str(CHECKPOINT), "--out", "build/evaluation", "--card", str(CHECKPOINT / "README.md")),
)


def main() -> None:
    """Run the stages. Stops at the first that fails."""
    for module, *arguments in STAGES:
        print(f"== {module} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
