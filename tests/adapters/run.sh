#!/usr/bin/env bash
# Tests of fs3 together with other projects, each in a virtual environment of its own.
#
#   bash tests/adapters/run.sh            all of them
#   bash tests/adapters/run.sh data -k x  one; what follows goes to pytest
#
# A folder beside this file is one environment: requirements.txt says what is in it besides fs3,
# without-dependencies.txt what is installed alone, and its test_*.py run there. Environments are
# kept in .venv-adapters and made anew when a requirement of theirs or of fs3 changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tests/setup.sh
. tests/setup.sh

prepare() { # name
    local folder=.venv-adapters/$1 requirements=tests/adapters/$1/requirements.txt wanted python
    local alone=tests/adapters/$1/without-dependencies.txt
    [ -e "$alone" ] || alone=/dev/null
    wanted="$(cat pyproject.toml "$requirements" "$alone" | sha256sum | cut -d' ' -f1) $PWD"
    grep -qxF "$wanted" "$folder/installed" 2>/dev/null && return 0
    say "making $folder"
    python=$(find_python)
    rm -rf "$folder"
    "$python" -m venv "$folder"
    # What pip says is of interest only when it fails.
    if ! "$folder/bin/python" -m pip install --disable-pip-version-check \
        -e . pytest pytest-timeout -r "$requirements" >"$folder/pip.log" 2>&1 ||
        ! "$folder/bin/python" -m pip install --disable-pip-version-check \
            --no-deps -r "$alone" >>"$folder/pip.log" 2>&1; then
        tail -n 20 "$folder/pip.log" >&2
        return 1
    fi
    printf '%s\n' "$wanted" >"$folder/installed"
}

run() { # name, pytest's arguments
    local name=$1
    shift
    prepare "$name"
    say "tests of $name"
    # Warnings of other projects are theirs; the tests are few, so that long ones run with the others.
    PATH=$PWD/.venv-adapters/$name/bin:$PATH FS3_ADAPTERS=$name \
        python -m pytest -o filterwarnings= -o addopts= --strict-markers -ra "tests/adapters/$name" "$@"
}

if [ $# -gt 0 ]; then
    run "$@"
    exit
fi
failed=()
for requirements in tests/adapters/*/requirements.txt; do
    name=$(basename "$(dirname "$requirements")")
    (run "$name") || failed+=("$name")
done
[ ${#failed[@]} = 0 ] || { say "FAILED: ${failed[*]}"; exit 1; }
