#!/bin/sh
# Prints the first of docker, podman and buildah that is installed and works. ENGINE restricts the choice.
for engine in ${ENGINE:-docker podman buildah}; do
    if command -v "$engine" > /dev/null && "$engine" info > /dev/null 2>&1; then
        echo "$engine"
        exit
    fi
done
echo "no container engine: ${ENGINE:-docker, podman or buildah} must be installed and working" >&2
exit 1
