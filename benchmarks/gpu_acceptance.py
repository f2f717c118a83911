"""Compare ways to compute the same images on this machine's GPU: speed, memory and image quality.

The ways, called candidates, are PyTorch in BF16, in BF16 and compiled, and in FP8, and TensorRT engines in BF16 and in
FP8. Each candidate runs in its own process, one after the other. All generate the same prompts from the same noise,
with the same steps and guidance. If a candidate cannot run, its row of the table says why.

Without --checkpoint, the weights are random but have the real shapes. The images are then noise, but take the time and
memory of real images. Without a GPU, the embedded model generates a few steps on the CPU, as with --small.

Writes a table, a page, the images and all samples to build/gpu-acceptance/. Exits with 1 if BF16 does not run.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.acceptance_candidate import CandidateTask
from benchmarks.acceptance_report import Row, acceptance_page, markdown
from benchmarks.outcome import machine
from benchmarks.processes import ROOT, ProcessFailed, clean_environment, run_module
from sd35.backends.tensorrt.flavour import gpu_architectures
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.compile.quality_gate import psnr_db
from sd35.settings import Precision
from sd35.tensors import Array

_SD35 = "from sd35.cli import main; main()"
_GUIDANCE = 4.5  # if the checkpoint generates without guidance by default
_SMALL = {"images": 1, "steps": 3, "threads": 1, "width_px": 64, "height_px": 64}
# `sd35 compile` checks images of the FP8 graph on the CPU. At the native size and with all steps, it would take hours.
_FP8_BUILD = ("--size", "512x512", "--steps", "8", "--no-sensitivity")


@dataclass(frozen=True)
class Candidate:
    """One way to compute images: a backend with its options."""

    name: str
    backend: str
    precision: Precision
    torch_compile: bool = False

    def images(self, folder: Path) -> Path:
        """Return the folder of the candidate's images, inside `folder`."""
        return folder / self.name.lower().replace(" ", "-")


REFERENCE = Candidate("BF16 eager", "diffusers", "bfloat16")
CANDIDATES = (
    REFERENCE,
    Candidate("BF16 compiled", "diffusers", "bfloat16", torch_compile=True),
    Candidate("FP8", "diffusers", "fp8"),
    Candidate("TensorRT BF16", "tensorrt", "bfloat16"),
    Candidate("TensorRT FP8", "tensorrt", "fp8"),
)


def main() -> None:
    """Measure all candidates, print the table, and write the results."""
    options = _parse_options()
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    has_gpu = bool(gpu_architectures())
    if not has_gpu and not options.small:
        print("No NVIDIA GPU found: running the small configuration on the CPU.")
    is_small = options.small or not has_gpu
    checkpoint = _open_or_create_checkpoint(options, is_small=is_small)
    common = _common_task(options, checkpoint, is_small=is_small)
    common["device"] = "cpu" if is_small else "cuda"
    results = {}
    for candidate in CANDIDATES:
        print(f"measuring {candidate.name} ...", flush=True)
        images = candidate.images(folder)
        shutil.rmtree(images, ignore_errors=True)
        images.mkdir()
        fields = {key: value for key, value in asdict(candidate).items() if key != "name"}
        results[candidate] = _measure(CandidateTask(**fields, **common, folder=str(images)))
    _write_results(folder, checkpoint, common, results)
    if results[REFERENCE].get("error"):
        raise SystemExit(1)


def _parse_options() -> argparse.Namespace:
    """Parse the command line. Exits with a message if it is wrong."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_acceptance", description=__doc__, formatter_class=form
    )
    parser.add_argument("--checkpoint", help="a name from `sd35 models` that was pulled, or a directory")
    shapes = ("sd3.5-medium", "sd3.5-large", "sd3.5-large-turbo")
    parser.add_argument(
        "--shapes", choices=shapes, default=shapes[0], help="model whose shapes the random weights have (%(default)s)"
    )
    parser.add_argument("--small", action="store_true", help="generate a few steps of the embedded model on the CPU")
    parser.add_argument("--images", type=int, default=3, help="number of timed images, after one warm-up (%(default)s)")
    parser.add_argument("--steps", type=int, help="steps of each image (the checkpoint's default)")
    parser.add_argument(
        "--offload", default="none", choices=["none", "encoders", "model"], help="networks in host memory (%(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "gpu-acceptance", help="folder of the results (%(default)s)"
    )
    options = parser.parse_args()
    if options.images < 1:
        parser.error(f"--images: got {options.images}; allowed: 1 or more")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps: got {options.steps}; allowed: 1 or more")
    return options


def _open_or_create_checkpoint(options: argparse.Namespace, *, is_small: bool) -> Checkpoint:
    """Open the checkpoint of the options, the embedded one, or one with random weights, which is created if missing."""
    if options.checkpoint or is_small:
        return open_checkpoint(options.checkpoint or EMBEDDED)
    directory: Path = options.output / f"{options.shapes}-random"
    if not directory.is_dir():
        error = _run_sd35("synth", options.shapes, "-o", str(directory))
        if error:
            raise SystemExit(f"the random weights could not be created: {error}")
    return open_checkpoint(str(directory))


def _common_task(options: argparse.Namespace, checkpoint: Checkpoint, *, is_small: bool) -> dict[str, Any]:
    """Return the fields of `CandidateTask` that are the same for all candidates, except the device."""
    card = checkpoint.card
    common = {
        "checkpoint": checkpoint.opened_as,
        "offload": options.offload,
        "threads": 0,
        "images": options.images,
        "width_px": card.width,
        "height_px": card.height,
        "steps": options.steps or card.steps,
        "guidance": card.guidance_scale if card.guidance_scale > 1 else _GUIDANCE,
        "cache_dir": str(options.output / "cache"),
    }
    return common | (_SMALL if is_small else {})


def _measure(task: CandidateTask) -> dict[str, Any]:
    """Run a candidate. If a graph or an engine must be built first, build it and run the candidate again.

    Returns:
        The figures that `benchmarks.acceptance_candidate` prints, or the reason as `error`.
    """
    result = _run_candidate(task)
    if "build" in result:
        arguments = [*result["build"], *(_FP8_BUILD if "fp8" in result["build"] else ()), "--cache-dir", task.cache_dir]
        print(f"  building: sd35 {' '.join(arguments)}", flush=True)
        error = _run_sd35(*arguments)
        if error:
            return {"error": f"building failed: {error}"}
        result = _run_candidate(task)
    return result


def _run_candidate(task: CandidateTask) -> dict[str, Any]:
    """Run a candidate in its own process. Returns what it prints, or an `error`."""
    try:
        return run_module("benchmarks.acceptance_candidate", json.dumps(asdict(task)))
    except ProcessFailed as error:
        return {"error": _last_line(str(error))}


def _run_sd35(*arguments: str) -> str:
    """Run a command of `sd35`. Returns "" if it succeeds, else the last line that it has written to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", _SD35, *arguments],
        cwd=ROOT, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if not done.returncode:
        return ""
    return _last_line(done.stderr) or f"it ended with exit code {done.returncode}"


def _last_line(text: str) -> str:
    return "".join(text.strip().splitlines()[-1:])


def _rows(folder: Path, results: dict[Candidate, dict[str, Any]]) -> Sequence[Row]:
    """Return the rows of the table. Compares the images of each candidate with those of the reference, if it ran."""
    expected = _read_images(folder, REFERENCE) if not results[REFERENCE].get("error") else []
    rows = []
    for candidate, result in results.items():
        if result.get("error"):
            rows.append(Row(candidate.name, result["error"]))
            continue
        pairs = zip(_read_images(folder, candidate), expected, strict=True) if expected else ()
        psnr = [] if candidate is REFERENCE else [psnr_db(*pair) for pair in pairs]
        figures = {key: result[key] for key in ("opened_s", "steps_s", "images_s", "peak_bytes")}
        rows.append(Row(candidate.name, **figures, psnr_db=psnr, is_reference=candidate is REFERENCE))
    return rows


def _write_results(
    folder: Path, checkpoint: Checkpoint, common: dict[str, Any], results: dict[Candidate, dict[str, Any]]
) -> None:
    """Print the table. Write it as Markdown and as an HTML page, and all samples as JSON."""
    device = next((result["device"] for result in results.values() if "device" in result), "no device")
    title = (
        f"{checkpoint.name} on {device}: {common['width_px']}x{common['height_px']} px, {common['steps']} steps,"
        f" guidance {common['guidance']:g}, images: {common['images']}, one by one"
    )
    rows = _rows(folder, results)
    table = markdown(title, rows)
    print(f"\n{table}")
    content = {"task": common, "machine": machine(), "rows": [asdict(row) for row in rows]}
    content["versions"] = {candidate.name: result.get("versions") for candidate, result in results.items()}
    (folder / "acceptance.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "acceptance.md").write_text(table, encoding="utf-8")
    (folder / "acceptance.html").write_text(acceptance_page(title, rows), encoding="utf-8")
    print(f"Table, page, images and all samples: {folder}")


def _read_images(folder: Path, candidate: Candidate) -> list[Array]:
    """Return the pixels of a candidate's images, in the order of their seeds."""
    files = sorted(candidate.images(folder).glob("*.png"), key=lambda file: int(file.stem))
    return [np.asarray(Image.open(file)) for file in files]


if __name__ == "__main__":
    main()
