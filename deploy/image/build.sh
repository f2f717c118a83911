#!/usr/bin/env bash
# Builds a target of the Dockerfile with what there is: docker, podman or buildah. `build.sh [cpu|cuda|tensorrt]`
#
# An index, or a certificate of your own for it: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_CERT. Where no registry is reached,
# buildah gets a base that is made of Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${1:-cuda}
name=sd35:$target
state=$PWD/build/image # git ignores it
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
arguments=(--target "$target" --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH")
for variable in PIP_INDEX_URL PIP_EXTRA_INDEX_URL TORCH_INDEX_URL; do
    if [ -n "${!variable:-}" ]; then arguments+=(--build-arg "$variable=${!variable}"); fi
done

for engine in docker podman; do
    if command -v $engine >/dev/null && $engine info >/dev/null 2>&1; then
        exec $engine build "${arguments[@]}" -t "$name" .
    fi
done
if ! command -v buildah >/dev/null; then
    echo "images are built with docker, podman or buildah: none of them works here" >&2
    exit 1
fi

export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot # nothing but files is needed
buildah=(buildah --root "$state/storage" --runroot "$state/run")
base=$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)
made=localhost/debian:bookworm
if "${buildah[@]}" inspect --type image $made >/dev/null 2>&1; then
    base=$made
elif ! timeout 60 "${buildah[@]}" pull -q "$base" >/dev/null 2>&1; then
    echo "no registry is reached: a base is made of Debian's packages"
    mkdir -p "$state"
    SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH mmdebstrap -q --variant=minbase bookworm "$state/base.tar" http://deb.debian.org/debian
    container=$("${buildah[@]}" from scratch)
    "${buildah[@]}" add -q "$container" "$state/base.tar" / >/dev/null
    "${buildah[@]}" commit -q --timestamp "$SOURCE_DATE_EPOCH" "$container" $made >/dev/null
    "${buildah[@]}" rm "$container" >/dev/null
    rm "$state/base.tar"
    base=$made
fi
if [ -n "${PIP_CERT:-}" ]; then
    arguments+=(--volume "$PIP_CERT:/run/certificate:ro" --build-arg PIP_CERT=/run/certificate)
fi
# Every step that is kept is a whole copy of the files with this storage: `LAYERS=false` is quicker where nothing is built again.
"${buildah[@]}" bud --layers="${LAYERS:-true}" --format docker --timestamp "$SOURCE_DATE_EPOCH" "${arguments[@]}" \
    --build-arg "BASE_IMAGE=$base" -t "localhost/$name" .
