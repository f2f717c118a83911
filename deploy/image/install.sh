#!/bin/sh
# Installs Python packages for the Dockerfile. The same inputs give the same files: bytecode is compiled at the end with hashes
# instead of timestamps, and all files get the same time.
#
#   install-python venv DIRECTORY LOCK                an environment with the packages of a lock
#   install-python torch DIRECTORY LOCK [INDEX_URL]   PyTorch, in a directory that environments have on their path
#   install-python project BUILD_VENV DIRECTORY       /project: the code in DIRECTORY/app, the model in DIRECTORY/weights
set -eu

pip_into() {
    python=$1
    shift
    python3 -m pip --python "$python" install --no-compile --no-warn-script-location "$@"
}

finish() {
    python3 -m compileall -q -f --invalidation-mode unchecked-hash "$1" || true # some packages contain files that are not Python 3
    find "$1" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
}

what=$1 directory=$2
case $what in
venv)
    python3 -m venv --without-pip "$directory"
    pip_into "$directory/bin/python" --require-hashes --no-deps -r "$3"
    printf '%s\n' /opt/sd35/torch /opt/sd35/app > "$directory/lib/python3.11/site-packages/sd35.pth"
    finish "$directory"
    ;;
torch)
    if [ -n "$4" ]; then
        pip_into /usr/bin/python3 --target "$directory" --index-url "$4" "$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' "$3")"
    else
        pip_into /usr/bin/python3 --target "$directory" --require-hashes --no-deps -r "$3"
    fi
    finish "$directory"
    ;;
project)
    python3 -m pip --python "$directory/bin/python" wheel --no-deps --no-build-isolation --wheel-dir /wheels /project
    python3 -m venv --without-pip "$3/venv" # the command `sd35` runs with its Python
    pip_into "$3/venv/bin/python" --no-index --no-deps --target "$3/app" /wheels/*.whl
    embedded=sd35/checkpoints/embedded
    mkdir -p "$3/weights/$embedded"
    mv "$3/app/$embedded"/* "$3/weights/$embedded/"
    rmdir "$3/app/$embedded"
    finish "$3"
    ;;
esac
