#!/usr/bin/env bash
# build.sh TARGET: builds sd35:TARGET with docker, podman or buildah, the first of them that works.
#
# Environment variables:
#   BASE_IMAGE, APT_MIRROR, APT_SECURITY_MIRROR, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, TORCH_INDEX_URL: build arguments
#   SOURCE_DATE_EPOCH: the time of all files, so that the same inputs give the same layers
#   ENGINE: the container engine to use
#   BUILD_FLAGS: more flags, such as --no-cache
#
# The build also uses the package index and the certificates of this machine's pip configuration, as secrets that no layer
# contains.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$1
epoch=${SOURCE_DATE_EPOCH:-1767225600} # 2026-01-01; with the time of a commit, each commit would change all layers
engine=$(deploy/image/engine.sh)

secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
arguments=(--file Dockerfile --target "$target" --tag "sd35:$target" --build-arg "SOURCE_DATE_EPOCH=$epoch")
for name in BASE_IMAGE APT_MIRROR APT_SECURITY_MIRROR PIP_INDEX_URL PIP_EXTRA_INDEX_URL TORCH_INDEX_URL; do
    [ -z "${!name:-}" ] || arguments+=(--build-arg "$name")
done
configured() { python3 -m pip config get "global.$1" 2> /dev/null || true; }
certificates=${PIP_CERT:-$(configured cert)} index=$(configured index-url)
{
    echo '[global]'
    [ -z "$index" ] || echo "index-url = $index"
    [ -z "$certificates" ] || echo "cert = /run/secrets/ca.pem"
} > "$secrets/pip.conf"
arguments+=(--secret "id=pip.conf,src=$secrets/pip.conf" --secret "id=ca.pem,src=${certificates:-/dev/null}")
# shellcheck disable=SC2206  # several words
arguments+=(${BUILD_FLAGS:-})

case $engine in
docker) DOCKER_BUILDKIT=1 docker build "${arguments[@]}" . ;;
*) "$engine" build --layers --format docker --timestamp "$epoch" "${arguments[@]}" . ;; # OCI's format has no HEALTHCHECK
esac
