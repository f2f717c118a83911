"""Runs the benchmarks, prints one table, keeps all samples in build/benchmarks.json; exits 1 where a bar is missed."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    cold_start,
    engine_cost,
    fp8,
    gemm_share,
    install_size,
    loading,
    openvino_genai,
    overload,
    page,
    picture,
    planned_memory,
    readme,
    real_size,
    service_cost,
    serving,
    soak,
)
from benchmarks.outcome import Outcome, machine, table
from sd35.checkpoints.checkpoint import EMBEDDED, open_checkpoint

OUTPUT = Path(__file__).parents[1] / "build" / "benchmarks.json"
BENCHMARKS: dict[str, Callable[[Path, int], Outcome]] = {
    "picture": picture.measure,
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
    found = machine()
    outcomes: dict[str, Outcome] = {}
    for name, measure in BENCHMARKS.items():
        if name in (options.names or BENCHMARKS.keys() - ONLY_WHEN_NAMED):
            print(f"measuring {name} ...", flush=True)
            outcomes[name] = measure(checkpoint.directory, options.rounds)
    print(f"\n{table(outcomes)}\n")
    if found["is_busy"]:
        print(f"Other work took {found['load']} of {found['cores']} cores: measure again on a quiet machine.\n")
    content = {"checkpoint": checkpoint.name, "machine": found}
    content |= {name: outcome.as_json() for name, outcome in outcomes.items()}
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"All samples: {OUTPUT.relative_to(Path.cwd()) if OUTPUT.is_relative_to(Path.cwd()) else OUTPUT}")
    if options.readme:
        readme.write(content)
    if not all(bar.is_met for outcome in outcomes.values() for bar in outcome.bars):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
