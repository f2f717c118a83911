#!/usr/bin/env bash
# Builds the `cpu` target, runs it as its user with a read-only root, waits until it is ready, sends the README's request, looks
# at the picture, ends it with SIGTERM, and prints sizes and times. Needs docker, podman, or buildah as root.
set -euo pipefail
cd "$(dirname "$0")/../.."
state=$PWD/build/image
work=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
deploy/image/build.sh cpu
mkdir -p "$work/cache"

now() { date +%s.%N; }
since() { python3 -c "import sys; print(f'{float(sys.argv[2]) - float(sys.argv[1]):.2f} s')" "$1" "$(now)"; }

ready() { # waits for the answer of a process that must not end before
    local tries
    for tries in $(seq 600); do
        if curl -sf -m 2 "http://127.0.0.1:$port/readyz" >/dev/null; then return; fi
        if ! alive; then break; fi
        sleep 0.1
    done
    echo "it did not become ready (looked $tries times); it said:" >&2
    said >&2
    return 1
}

for engine in docker podman; do
    if command -v $engine >/dev/null && $engine info >/dev/null 2>&1; then break; fi
    engine=buildah
done
if [ $engine = buildah ]; then
    export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
    buildah=(buildah --root "$state/storage" --runroot "$state/run")
    container=$("${buildah[@]}" from localhost/sd35:cpu)
    root=$("${buildah[@]}" mount "$container")
    chown 1000:1000 "$work/cache"
    mapfile -t variables < <("${buildah[@]}" inspect --type image \
        --format '{{range .Docker.Config.Env}}{{println .}}{{end}}' localhost/sd35:cpu | sed '/^$/d')
    command=$("${buildah[@]}" inspect --type image \
        --format '{{range .Docker.Config.Entrypoint}}{{.}} {{end}}{{range .Docker.Config.Cmd}}{{.}} {{end}}' localhost/sd35:cpu)
    user=$("${buildah[@]}" inspect --type image --format '{{.Docker.Config.User}}' localhost/sd35:cpu)
    alive() { kill -0 "$process" 2>/dev/null; }
    said() { cat "$work/log"; }
    finish() {
        kill -9 "$process" 2>/dev/null || true
        "${buildah[@]}" umount "$container" >/dev/null 2>&1 || true
        "${buildah[@]}" rm "$container" >/dev/null 2>&1 || true
        rm -rf "$work"
    }
    process=
    trap finish EXIT
    began=$(now)
    # A mount namespace of its own: the image's root read-only, a cache and the kernel's folders in it; then chroot, and exec, so
    # that the process that is told to end is the service itself.
    # shellcheck disable=SC2016  the inner shell expands these
    unshare --mount --propagation private sh -c '
        root=$1 cache=$2 user=$3 command=$4
        shift 4
        mount --bind "$root" "$root"
        mount --bind "$cache" "$root/cache"
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs tmpfs "$root/tmp"
        mount -o remount,ro,bind "$root"
        exec env -i "$@" chroot --userspec="$user" "$root" $command
    ' sh "$root" "$work/cache" "$user" "$command" "${variables[@]}" \
        SD35_HOST=127.0.0.1 SD35_PORT="$port" >"$work/log" 2>&1 &
    process=$!
    end() { kill -TERM "$process" && wait "$process"; }
else
    container=$($engine run -d --read-only --tmpfs /tmp -p "127.0.0.1:$port:8000" sd35:cpu)
    alive() { [ "$($engine inspect -f '{{.State.Running}}' "$container")" = true ]; }
    said() { $engine logs "$container"; }
    finish() {
        $engine rm -f "$container" >/dev/null 2>&1 || true
        rm -rf "$work"
    }
    trap finish EXIT
    began=$(now)
    end() { $engine stop -t 70 "$container" >/dev/null && [ "$($engine wait "$container")" = 0 ]; }
fi

ready
echo "ready after $(since "$began")"
request=$(sed -n '/^\$ curl -X POST .*txt2img/,/-o out.png$/p' README.md | sed 's/^\$ //' | sed "s/:8000/:$port/")
(cd "$work" && eval "$request -sf")
python3 - "$work/out.png" <<'PYTHON'
import struct, sys

data = open(sys.argv[1], "rb").read()
width, height = struct.unpack(">II", data[16:24])
assert data.startswith(b"\x89PNG") and (width, height) == (1024, 1024), data[:32]
print(f"the README's request: a PNG file of {width}x{height} pixels, {len(data)} bytes")
PYTHON
if [ $engine = buildah ] && touch "/proc/$process/root/opt/written" 2>/dev/null; then
    echo "the root can be written to" >&2
    exit 1
fi
began=$(now)
end || { echo "it did not end well; it said:" >&2; said >&2; exit 1; }
echo "ended by SIGTERM with 0 after $(since "$began")"
deploy/image/sizes.sh cpu
