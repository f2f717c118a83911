"""Run the benchmarks, print one table, and write all samples to build/benchmarks.json.

Each benchmark compares its main results with limits, called bars. The file is written after each benchmark, so that a
later failure loses no result. Exits with 1 if a bar is missed or a benchmark fails, and with 130 after Ctrl-C.
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
    planned_memory,
    readme,
    real_size,
    service_cost,
    serving,
    soak,
    ui,
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
    "ui": ui.measure,
}
# These benchmarks need or create a checkpoint of many gigabytes, compile for minutes, or take half an hour.
ONLY_WHEN_NAMED = {"loading", "real-size", "fp8", "soak"}


def main() -> None:
    """Run the benchmarks that the command line names. Without names, run all except those in `ONLY_WHEN_NAMED`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    slow = ", ".join(sorted(ONLY_WHEN_NAMED))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; default: all but {slow}")
    parser.add_argument("--checkpoint", default=EMBEDDED, help="a name or a directory (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each side after a warm-up (%(default)s)")
    parser.add_argument(
        "--readme", action="store_true", help="store the figures and update the tables of the documentation"
    )
    options = parser.parse_args()
    unknown = set(options.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(f"NAME: got {', '.join(sorted(unknown))}; allowed: {', '.join(BENCHMARKS)}")
    if options.rounds < 1:
        parser.error(f"--rounds: got {options.rounds}; allowed: 1 or more")
    if options.readme and options.names:
        parser.error("--readme: got names of benchmarks, but the tables need all benchmarks; leave out the names")
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
        print(f"The documentation's tables were not updated: {', '.join(run.failures)} failed.")
    if run.failures or not all(bar.is_met for outcome in run.outcomes.values() for bar in outcome.bars):
        raise SystemExit(1)


class Run:
    """The outcomes of the benchmarks that have run so far, by name.

    `failures` has the traceback of each benchmark that failed, by name.
    """

    def __init__(self, checkpoint: Checkpoint, machine_found: dict[str, Any]) -> None:
        self._checkpoint, self._machine = checkpoint, machine_found
        self.outcomes: dict[str, Outcome] = {}
        self.failures: dict[str, str] = {}

    @property
    def content(self) -> dict[str, Any]:
        """The checkpoint, the machine, all outcomes and all failures, as a JSON object."""
        measured = {name: outcome.as_json() for name, outcome in self.outcomes.items()}
        return {
            "checkpoint": self._checkpoint.name,
            "machine": self._machine,
            **measured,
            **({"failures": self.failures} if self.failures else {}),
        }

    def measure(self, name: str, rounds: int) -> None:
        """Run a benchmark with `rounds` samples of each side, and write all outcomes so far to the file."""
        print(f"measuring {name} ...", flush=True)
        try:
            self.outcomes[name] = BENCHMARKS[name](self._checkpoint.directory, rounds)
        except (Exception, SystemExit):  # noqa: BLE001  the other benchmarks still run
            self.failures[name] = traceback.format_exc()
            print(f"{name} failed:\n{self.failures[name]}", flush=True)
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")

    def report(self) -> None:
        """Print the table and the failures."""
        print(f"\n{table(self.outcomes)}\n")
        for name, failure in self.failures.items():
            print(f"{name} FAILED: {failure.splitlines()[-1]}")
        load, cores = self._machine["load"], self._machine["cores"]
        if self._machine["is_busy"]:
            print(f"Other processes used {load} of {cores} cores: measure again on a quiet machine.\n")
        print(f"All samples: {OUTPUT.relative_to(Path.cwd()) if OUTPUT.is_relative_to(Path.cwd()) else OUTPUT}")


if __name__ == "__main__":
    main()
