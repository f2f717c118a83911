#!/usr/bin/env bash
# How large a target is, layer by layer, beyond its base. `sizes.sh [cpu|cuda|tensorrt]`
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${1:-cuda}
for engine in docker podman; do
    if command -v $engine >/dev/null && $engine info >/dev/null 2>&1; then
        exec $engine history --format '{{.Size}}\t{{.CreatedBy}}' "sd35:$target"
    fi
done
export STORAGE_DRIVER=vfs
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
buildah --root build/image/storage --runroot build/image/run push -q --disable-compression \
    "localhost/sd35:$target" "dir:$out"
python3 - "$out" <<'PYTHON'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
config = json.loads((folder / manifest["config"]["digest"].partition(":")[2]).read_text())
steps = [step.get("created_by", "") for step in config["history"] if not step.get("empty_layer")]
sizes = [layer["size"] for layer in manifest["layers"]]
steps = ["the base", *steps[-len(sizes) + 1 :]]
for size, step in zip(sizes, steps, strict=True):
    print(f"{size / 1e6:8.1f} MB  {step.replace('/bin/sh -c #(nop)', '').strip()[:110]}")
print(f"{sum(sizes[1:]) / 1e6:8.1f} MB beyond the base")
PYTHON
