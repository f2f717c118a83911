#!/bin/sh
# Makes folders fit to be a layer: no pip, modules compiled so that their time does not matter, and every file of one time.
# What is compiled names its source by its path in the image: `/code/opt/...` becomes `/opt/...`.
set -eu
for folder in "$@"; do
    find "$folder" -path '*/site-packages/pip' -prune -exec rm -rf {} +
    find "$folder" -path '*/site-packages/pip-*' -prune -exec rm -rf {} +
    find "$folder" -path '*/site-packages/setuptools*' -prune -exec rm -rf {} +
    rm -f "$folder"/bin/pip* "$folder"/bin/activate* "$folder"/bin/Activate*
    case "$folder" in /opt/*) prefix= ;; *) prefix="-s $folder -p /" ;; esac
    # shellcheck disable=SC2086  two arguments, or none; a package may hold files for other Pythons, which do not compile
    python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash $prefix "$folder" || true
    find "$folder" -newermt "@${SOURCE_DATE_EPOCH:-0}" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
done
