#!/usr/bin/env bash
# Make .venv and install into it:  tools/install.sh core|serve|test
# core : what runs.  serve, test : core and the extra of that name in pyproject.toml.
# .venv/.stamp-core, .venv/.stamp-serve and .venv/.stamp-test are written last, so that an install that was cut short is done again.
# PYTHON names another interpreter, PIP_FLAGS is handed to pip.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-core}
case $what in
core) target='.' ;;
serve | test) target=".[$what]" ;;
*) echo "install.sh: $what is not known; write core, serve or test." >&2; exit 2 ;;
esac

die() { echo "systolith: $1" >&2; exit 2; }

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for name in ${PYTHON:-} python3.11 python3; do
        if command -v "$name" >/dev/null && recent "$name"; then
            echo "$name"
            return
        fi
    done
}

if ! { [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
    python=$(find_python)
    [ -n "$python" ] || die 'Python 3.11 or newer is missing; install it with: apt-get install -y python3 python3-venv'
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$("$python" --version) lacks the venv module; install it with: apt-get install -y python3-venv"
    echo "systolith: making .venv with $("$python" --version)" >&2
    "$python" -m venv --clear .venv
fi

rm -f ".venv/.stamp-$what"
case $what in
core) echo 'systolith: installing the core into .venv (once, about a minute)' >&2 ;;
serve) echo 'systolith: installing the core and what serving needs into .venv (once, about a minute)' >&2 ;;
test) echo 'systolith: installing the core and the test extras into .venv (once, a few minutes; torch is the large one)' >&2 ;;
esac
# shellcheck disable=SC2086  # PIP_FLAGS is a list of words
.venv/bin/python -m pip install --quiet --disable-pip-version-check ${PIP_FLAGS:-} --editable "$target" ||
    die "pip could not install $what; its message stands above, and the same make command tries again."
touch .venv/.stamp-core
[ "$what" = core ] || touch ".venv/.stamp-$what"
