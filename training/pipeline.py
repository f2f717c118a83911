"""The whole recipe of sd35-mini, in order: `make train`. Every stage resumes where it was stopped.

Weights of a stage lie in `build/train`; the checkpoint that ships is replaced at the end.
"""

import subprocess
import sys
from pathlib import Path

WORK = Path("build/train")
CHECKPOINT = Path("src/sd35/checkpoints/embedded/sd35-mini")
AUTOENCODER, TRANSFORMER = WORK / "autoencoder", WORK / "transformer"
STAGES: tuple[tuple[str, ...], ...] = (
    ("training.autoencoder", "--out", str(AUTOENCODER)),
    ("training.transformer", "--vae", str(AUTOENCODER / "mosaics/vae"), "--out", str(TRANSFORMER)),
    (
        *("training.assemble", "--autoencoder", str(AUTOENCODER), "--transformer", str(TRANSFORMER)),
        *("--out", str(CHECKPOINT)),
    ),
    ("training.evaluate", str(CHECKPOINT), "--out", "build/evaluation", "--card", str(CHECKPOINT / "README.md")),
)


def main() -> None:
    """Runs the stages; stops at the first that fails."""
    for module, *arguments in STAGES:
        print(f"== {module} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
