"""Runs the benchmarks, prints one table, and writes all samples to build/benchmarks.json.

The file is written after each benchmark, so that results are kept whatever fails later. Exits with 1 if a bar is missed
or a benchmark failed, and with 130 after Ctrl-C.
"""

import argparse
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    cold_start,
    engine_cost,
    fp8,
    gemm_share,
    image,
    install_size,
    loading,
    openvino_genai,
    overload,
    page,
    planned_memory,
    readme,
    real_size,
    service_cost,
    serving,
    soak,
)
from benchmarks.outcome import Outcome, machine, table
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED

OUTPUT = Path(__file__).parents[1] / "build" / "benchmarks.json"
BENCHMARKS: dict[str, Callable[[Path, int], Outcome]] = {
    "image": image.measure,
    "openvino": openvino_genai.measure,
    "cold-start": cold_start.measure,
    "install-size": install_size.measure,
    "engine-cost": engine_cost.measure,
    "gemm-share": gemm_share.measure,
    "serving": serving.measure,
    "overload": overload.measure,
    "service-cost": service_cost.measure,
    "planned-memory": planned_memory.measure,
    "loading": loading.measure,
    "fp8": fp8.measure,
    "real-size": real_size.measure,
    "soak": soak.measure,
    "page": page.measure,
}
# They take a checkpoint of many gigabytes to mean anything, make one, take minutes to compile, or half an hour.
ONLY_WHEN_NAMED = {"loading", "real-size", "fp8", "soak"}


def main() -> None:
    """Measures what the command line names, or everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    few = ", ".join(sorted(ONLY_WHEN_NAMED))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; none named: all but {few}")
    parser.add_argument("--checkpoint", default=EMBEDDED, help="the embedded one's name, or a directory (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each side, after a warm-up (%(default)s)")
    parser.add_argument("--readme", action="store_true", help="renew the READMEs' table by what is found")
    options = parser.parse_args()
    if unknown := set(options.names) - BENCHMARKS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if options.rounds < 1:
        parser.error("--rounds: 1 or more")
    if options.readme and options.names:
        parser.error("--readme: the table is of a run of all, so name none")
    checkpoint = open_checkpoint(options.checkpoint)
    names = [name for name in BENCHMARKS if name in (options.names or BENCHMARKS.keys() - ONLY_WHEN_NAMED)]
    run = Run(checkpoint, machine())
    try:
        for name in names:
            run.measure(name, options.rounds)
    except KeyboardInterrupt:
        run.report()
        raise SystemExit(130) from None
    run.report()
    if options.readme and not run.failures:
        readme.write(run.content)
    elif options.readme:
        print(f"The READMEs' table stays as it is: {', '.join(run.failures)} failed.")
    if run.failures or not all(bar.is_met for outcome in run.outcomes.values() for bar in outcome.bars):
        raise SystemExit(1)


class Run:
    """What was measured so far. `failures`: what benchmarks that failed raised, as a traceback."""

    def __init__(self, checkpoint: Checkpoint, found: dict[str, Any]) -> None:
        self._checkpoint, self._machine = checkpoint, found
        self.outcomes: dict[str, Outcome] = {}
        self.failures: dict[str, str] = {}

    @property
    def content(self) -> dict[str, Any]:
        """All of it, as JSON."""
        measured = {name: outcome.as_json() for name, outcome in self.outcomes.items()}
        return {
            "checkpoint": self._checkpoint.name,
            "machine": self._machine,
            **measured,
            **({"failures": self.failures} if self.failures else {}),
        }

    def measure(self, name: str, rounds: int) -> None:
        """Run a benchmark, and write all results."""
        print(f"measuring {name} ...", flush=True)
        try:
            self.outcomes[name] = BENCHMARKS[name](self._checkpoint.directory, rounds)
        except (Exception, SystemExit):  # noqa: BLE001  whatever it is, the others are measured
            self.failures[name] = traceback.format_exc()
            print(f"{name} failed:\n{self.failures[name]}", flush=True)
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")

    def report(self) -> None:
        """Print the table, and what failed."""
        print(f"\n{table(self.outcomes)}\n")
        for name, failure in self.failures.items():
            print(f"{name} FAILED: {failure.splitlines()[-1]}")
        load, cores = self._machine["load"], self._machine["cores"]
        if self._machine["is_busy"]:
            print(f"Other work took {load} of {cores} cores: measure again on a quiet machine.\n")
        print(f"All samples: {OUTPUT.relative_to(Path.cwd()) if OUTPUT.is_relative_to(Path.cwd()) else OUTPUT}")


if __name__ == "__main__":
    main()
