"""Check that SD3.5 Medium's transformer can be compiled at its real size within 24 GiB of memory.

The weights are random. The work has stages, such as exporting the graph and building an engine. Each stage runs in its
own process. A stage that exceeds the memory limit is killed, and the stages that need its result are skipped.

Results are kept in build/real-size/, which takes 15 GB. To run a stage again, remove its JSON file there. To run all
stages again, remove the folder. Linux only.
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
INTERVAL_S = 0.05  # between two samples of a stage's memory
LAYERS_RATIO, WHOLE_RATIO = 0.55, 0.70  # limits of the size in FP8 / BF16: of the layers in FP8, and of the transformer
# Each stage with the stages whose results it needs.
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
StageResult = dict[str, Any]  # figures of a stage; `error` is "" if it succeeded


def measure(_directory: Path, _rounds: int) -> Outcome:
    """Run each stage once, on a checkpoint that the first stage creates."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    results: dict[str, StageResult] = {}
    for stage, needs in STAGES.items():
        missing = [name for name in needs if results[name]["error"]]
        if missing:
            results[stage] = {"error": f"not run, because {missing[0]} failed"}
            continue
        results[stage] = _read_result(stage) or _run_stage(stage)
        print(f"  {_line(stage, results[stage])}", flush=True)
    return Outcome(list(_bars(results)), [*_table(results), *_ratios(results)], results)


def _read_result(stage: str) -> StageResult | None:
    """Return the result of a stage that has succeeded in an earlier run, or None."""
    with suppress(FileNotFoundError):
        result: StageResult = json.loads(_file(stage).read_text(encoding="utf-8"))
        return None if result["error"] else result
    return None


def _run_stage(stage: str) -> StageResult:
    """Run a stage in a process with a memory limit. Writes its result to its JSON file, and returns it."""
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
    result: StageResult = {"took_s": time.monotonic() - began_s, **peaks._asdict(), "error": watch.reason}
    if process.returncode == 0:
        reported: StageResult = json.loads(output.splitlines()[-1])
        resident_bytes = max(peaks.resident_bytes, reported["resident_bytes"])
        result |= {**reported, "resident_bytes": resident_bytes}
    elif not watch.reason:
        last = (FOLDER / f"{stage}.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
        result["error"] = f"ended with exit code {process.returncode}: {''.join(last)}"
    _file(stage).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _file(stage: str) -> Path:
    """Return the path of a stage's JSON file."""
    return FOLDER / f"{stage}.json"


def _bars(results: Mapping[str, StageResult]) -> Iterator[Bar]:
    """Yield the bars. Without a quantised graph, there are none for its sizes."""
    done = [name for name in STAGES if not results[name]["error"]]
    yield Bar("stages that succeeded", len(done), f"of {len(STAGES)}", ">=", len(STAGES))
    peak_bytes = max(results[name].get("own_bytes", 0) for name in STAGES)
    yield Bar("peak of a stage's own memory", peak_bytes / 2**30, "GiB", "<=", LIMIT_BYTES / 2**30)
    if "quantise" in done:
        sizes = results["quantise"]
        layers, whole = (sizes[f"{part}_bytes"] / sizes[f"{part}_bf16_bytes"] for part in ("layers", "total"))
        yield Bar("FP8 / BF16, bytes of the layers in FP8", layers, "x", "<=", LAYERS_RATIO)
        yield Bar("FP8 / BF16, bytes of the transformer", whole, "x", "<=", WHOLE_RATIO)


def _table(results: Mapping[str, StageResult]) -> Iterator[str]:
    """Yield a line for each stage, and an explanation."""
    for stage in STAGES:
        yield _line(stage, results[stage])
    yield "resident: all physical memory of the process; own: without pages mapped from files"


def _line(stage: str, result: StageResult) -> str:
    """Return a line with the name of a stage and those of its figures that were measured."""
    memory = [
        f"{kind} {result[f'{kind}_bytes'] / 1e9:5.2f} GB" for kind in ("resident", "own") if f"{kind}_bytes" in result
    ]
    sizes = [
        f"{name} {result[key] / 1e9:.2f} GB"
        for key, name in (("file_bytes", "files"), ("weights_bytes", "weights"), ("held_bytes", "held"))
        if key in result
    ]
    took = [f"{result['took_s']:6.1f} s"] if "took_s" in result else []
    return f"{stage:<16} {', '.join([*took, *memory, *sizes, *filter(None, [result['error']])])}"


def _ratios(results: Mapping[str, StageResult]) -> Iterator[str]:
    """Yield notes that compare sizes in FP8 with those in BF16 and float32, of the stages that succeeded."""
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
        if not results[fp8]["error"] and not results[other]["error"]:
            yield f"{what}: {fp8} / {other} = {results[fp8][key] / results[other][key]:.3f}"
