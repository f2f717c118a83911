"""Compiles SD3.5 Medium's transformer at its real size within 24 GiB of memory.

The weights are random. Each stage runs in its own process. A stage that exceeds the memory limit is killed, and the
stages that need it are skipped. Results are cached in build/real-size/, which takes 15 GB. To run a stage again, remove
its JSON file there; to run all, remove the folder. Linux only.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.memory_watch import MemoryWatch
from benchmarks.outcome import Bar, Outcome
from benchmarks.processes import ROOT, clean_environment

FOLDER = ROOT / "build" / "real-size"
LIMIT_BYTES = 24 << 30
MIN_FREE_BYTES = 1 << 29  # of the machine's memory: with less, the system could kill other processes
INTERVAL_S = 0.05
LAYERS_RATIO, WHOLE_RATIO = 0.55, 0.70
# Each stage with the stages that it needs.
STAGES: Mapping[str, tuple[str, ...]] = {
    "synth": (),
    "export": ("synth",),
    "calibrate": ("synth",),
    "quantise": ("export", "calibrate"),
    "hold-float32": ("synth",),
    "hold-bfloat16": ("synth",),
    "hold-fp8-weights": ("synth",),
    "hold-fp8-storage": ("synth",),
    "engine-bf16": ("export",),
    "engine-fp8": ("quantise",),
}
Found = dict[str, Any]


def measure(_directory: Path, _rounds: int) -> Outcome:
    """Run each stage once, on a checkpoint that the first stage creates."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    found: dict[str, Found] = {}
    for stage, needs in STAGES.items():
        if missing := [name for name in needs if found[name]["error"]]:
            found[stage] = {"error": f"not run, because {missing[0]} failed"}
            continue
        found[stage] = _read(stage) or _run(stage)
        print(f"  {_line(stage, found[stage])}", flush=True)
    return Outcome(list(_bars(found)), [*_table(found), *_ratios(found)], found)


def _read(stage: str) -> Found | None:
    """Return the result of a stage that succeeded before, or None."""
    with suppress(FileNotFoundError):
        found: Found = json.loads(_file(stage).read_text(encoding="utf-8"))
        return None if found["error"] else found
    return None


def _run(stage: str) -> Found:
    with (FOLDER / f"{stage}.log").open("w", encoding="utf-8") as log:
        began_s = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.real_size_stage", stage, str(FOLDER)],
            cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        watch = MemoryWatch(
            process.pid, interval_s=INTERVAL_S, max_own_bytes=LIMIT_BYTES, min_free_bytes=MIN_FREE_BYTES
        )
        watch.start()
        output, _ = process.communicate()
        peaks = watch.stop()
    found: Found = {"took_s": time.monotonic() - began_s, **peaks._asdict(), "error": watch.reason}
    if process.returncode == 0:
        reported: Found = json.loads(output.splitlines()[-1])
        resident_bytes = max(peaks.resident_bytes, reported["resident_bytes"])
        found |= {**reported, "resident_bytes": resident_bytes}
    elif not watch.reason:
        last = (FOLDER / f"{stage}.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
        found["error"] = f"ended with {process.returncode}: {''.join(last)}"
    _file(stage).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _file(stage: str) -> Path:
    return FOLDER / f"{stage}.json"


def _bars(found: Mapping[str, Found]) -> Iterator[Bar]:
    done = [name for name in STAGES if not found[name]["error"]]
    yield Bar("stages that succeeded", len(done), f"of {len(STAGES)}", ">=", len(STAGES))
    peak = max(found[name].get("own_bytes", 0) for name in STAGES)
    yield Bar("peak of a stage's own memory", peak / 2**30, "GiB", "<=", LIMIT_BYTES / 2**30)
    if "quantise" in done:
        sizes = found["quantise"]
        layers, whole = (sizes[f"{part}_bytes"] / sizes[f"{part}_bf16_bytes"] for part in ("layers", "total"))
        yield Bar("FP8 / BF16, bytes of the layers in FP8", layers, "x", "<=", LAYERS_RATIO)
        yield Bar("FP8 / BF16, bytes of the transformer", whole, "x", "<=", WHOLE_RATIO)


def _table(found: Mapping[str, Found]) -> Iterator[str]:
    for stage in STAGES:
        yield _line(stage, found[stage])
    yield "resident: all physical memory of the process; own: without pages mapped from files"


def _line(stage: str, found: Found) -> str:
    memory = [
        f"{kind} {found[f'{kind}_bytes'] / 1e9:5.2f} GB" for kind in ("resident", "own") if f"{kind}_bytes" in found
    ]
    sizes = [
        f"{name} {found[key] / 1e9:.2f} GB"
        for key, name in (("file_bytes", "files"), ("weights_bytes", "weights"), ("held_bytes", "held"))
        if key in found
    ]
    took = [f"{found['took_s']:6.1f} s"] if "took_s" in found else []
    return f"{stage:<16} {', '.join([*took, *memory, *sizes, *filter(None, [found['error']])])}"


def _ratios(found: Mapping[str, Found]) -> Iterator[str]:
    for what, fp8, other, key in (
        ("the graph's files", "quantise", "export", "file_bytes"),
        ("the engine", "engine-fp8", "engine-bf16", "file_bytes"),
        *(
            (what, f"hold-fp8-{way}", f"hold-{other}", key)
            for way in ("weights", "storage")
            for other in ("bfloat16", "float32")
            for what, key in (("PyTorch's weights", "weights_bytes"), ("the process's memory", "held_bytes"))
        ),
    ):
        if not found[fp8]["error"] and not found[other]["error"]:
            yield f"{what}: {fp8} / {other} = {found[fp8][key] / found[other][key]:.3f}"
