# Sourced by tests/run.sh and deploy/demo.sh: Debian packages if they are missing and we may, and a
# virtual environment in .venv with fs3 in it. Sets nothing but FS3_PYTHON.
#
#   install_packages COMMAND:PACKAGE ...   installs the packages whose command is missing, as root
#   make_environment EXTRAS                e.g. ".[dev]"; installs anew only when pyproject.toml, setup.py or
#                                          what is compiled (fs3/compiled) changed

# Whether the extension can be built: then it is tried again when that has changed.
HAS_HEADERS='import os, sysconfig; print(os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))'

say() { printf '== %s\n' "$*"; }

install_packages() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair##*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        say "not installed, and only root on Debian could do it here: ${missing[*]}"
        return 0
    fi
    say "installing ${missing[*]}"
    # Needed beside the network: a machine that has them needs neither.
    DEBIAN_FRONTEND=noninteractive apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            command -v "$name"
            return 0
        fi
    done
    echo "fs3 needs Python 3.11 or newer; none was found" >&2
    return 1
}

make_environment() {
    local extras=$1 python stamp sources wanted
    if [ ! -x .venv/bin/python ]; then
        install_packages python3:python3.11
        python=$(find_python)
        say "making .venv with $python"
        if ! "$python" -m venv .venv >/dev/null 2>&1; then
            rm -rf .venv
            # Debian keeps venv in a package of its own, which ensurepip belongs to.
            install_packages "no-such-command:$(basename "$(readlink -f "$python")")-venv"
            "$python" -m venv .venv
        fi
    fi
    FS3_PYTHON=$PWD/.venv/bin/python
    stamp=.venv/fs3-installed
    sources=$(cat pyproject.toml setup.py fs3/compiled/*.[ch] | sha256sum | cut -d' ' -f1)
    wanted="$extras $sources $(command -v cc || true) $("$FS3_PYTHON" -c "$HAS_HEADERS") $PWD"
    if ! grep -qxF "$wanted" "$stamp" 2>/dev/null; then
        say "installing fs3 into .venv (pip install -e $extras)"
        # What it says is of interest only when it fails.
        if ! "$FS3_PYTHON" -m pip install --disable-pip-version-check -e "$extras" >.venv/pip.log 2>&1; then
            tail -n 20 .venv/pip.log >&2
            return 1
        fi
        # What was built from other sources has been overwritten.
        grep -qF "$sources" "$stamp" 2>/dev/null || : >"$stamp"
        printf '%s\n' "$wanted" >>"$stamp"
    fi
}
