#!/bin/sh
# Prints which of docker, podman and buildah is there and works; ENGINE names one.
for engine in ${ENGINE:-docker podman buildah}; do
    if command -v "$engine" > /dev/null && "$engine" info > /dev/null 2>&1; then
        echo "$engine"
        exit
    fi
done
echo "Of ${ENGINE:-docker, podman and buildah}, none is there and works." >&2
exit 1
