"""The whole recipe of sd35-mini, in order: `make train`. Every stage resumes where it was stopped.

Weights of a stage lie in `build/train`; the checkpoint that ships is replaced after the first, then refined.
"""

import subprocess
import sys
from pathlib import Path

WORK = Path("build/train")
CHECKPOINT = Path("src/sd35/checkpoints/embedded/sd35-mini")
AUTOENCODER = WORK / "autoencoder"


def _later(stage: str) -> list[tuple[str, ...]]:
    """A further stage of the transformer's, on the checkpoint as it is, which then has its weights."""
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
    *_later("refined"),
    *_later("sizes"),
    ("training.evaluate", str(CHECKPOINT), "--out", "build/evaluation", "--card", str(CHECKPOINT / "README.md")),
)


def main() -> None:
    """Runs the stages; stops at the first that fails."""
    for module, *arguments in STAGES:
        print(f"== {module} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
