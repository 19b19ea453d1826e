#!/usr/bin/env bash
# The tests of fs3.
#
#   bash tests/run.sh          everything
#   bash tests/run.sh fast     format, lint, types, and the tests that take seconds
#   bash tests/run.sh long     only the tests that take longer: many seeds, real programs on a mount
#   bash tests/run.sh fast -k chain    what follows goes to pytest
#
# Makes .venv if there is none, and as root installs the Debian packages that tests use. A test that
# cannot run here says why it is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/setup.sh
. tests/setup.sh

part=${1:-all}
case $part in
    fast | long | all) shift $(($# > 0 ? 1 : 0)) ;;
    *) echo "usage: bash tests/run.sh [fast|long|all] [pytest's arguments]" >&2; exit 2 ;;
esac

install_packages git:git rsync:rsync sqlite3:sqlite3 fusermount3:fuse3 ip:iproute2 tar:tar g++:g++
# Without "grep -q": it would end early, and the pipe with it.
if ! PATH=$PATH:/sbin ldconfig -p | grep libfuse3.so.3 >/dev/null; then
    install_packages "no-such-command:libfuse3-3"
fi
# For the guest with RDMA devices (tests/rdma/vm.py).
if [ ! -d /usr/lib/python3/dist-packages/pyverbs ] || ! command -v taskset >/dev/null 2>&1; then
    install_packages "no-such-command:python3-pyverbs" "no-such-command:libibverbs1" \
        "no-such-command:ibverbs-providers" "no-such-command:librdmacm1" taskset:util-linux
fi
# For the compiled loops (fs3/compiled): the headers of the Python that is used, and a compiler.
install_packages cc:gcc python3:python3.11
python=$(find_python)
if ! "$python" -c 'import pathlib, sysconfig, sys
sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").is_file())'; then
    install_packages "no-such-command:$(basename "$(readlink -f "$python")")-dev"
fi
make_environment ".[dev,fuse]"
export PATH=$PWD/.venv/bin:$PATH
began=$SECONDS
failed=()

step() { # name, command...: all of them run, so that one run shows everything that is wrong
    say "$1"
    "${@:2}" || failed+=("$1")
}

if [ "$part" != long ]; then
    step "ruff format" ruff format --check .
    step "ruff check" ruff check .
    step "mypy --strict" python tests/typecheck.py
    # Two processes: what a test uses (ports, directories, mounts) is its own.
    step "fast tests" python -m pytest -n 2 --dist loadfile -m "not long" "$@"
    # Whoever has no compiler gets the same loops in Python.
    if [ $# = 0 ]; then
        step "without the extension" env FS3_COMPILED=0 python -m pytest -q -n 2 --dist loadfile -m "not long" \
            tests/contract/test_chunkstore*.py tests/contract/test_locating.py tests/contract/test_stamped_places.py \
            tests/contract/test_transport.py tests/unit/test_chunkstore_faults.py tests/unit/test_local_port.py \
            tests/unit/test_promised_answers.py tests/unit/test_remembered_places.py
    fi
fi
if [ "$part" != fast ]; then
    step "long tests" python -m pytest -n 2 --dist loadfile -m long "$@"
    # What is in other projects' environments is not chosen by pytest's arguments.
    if [ $# = 0 ]; then step "tests with other projects" bash tests/adapters/run.sh; fi
fi
if [ ${#failed[@]} -gt 0 ]; then
    say "FAILED after $((SECONDS - began)) s: $(IFS=,; echo "${failed[*]}")"
    exit 1
fi
say "'$part' passed in $((SECONDS - began)) s"
