#!/usr/bin/env bash
# fs3 in two minutes, on this machine: a cluster of three storageservers, a mount, real files, a server
# killed in the middle, and a proof that nothing was lost.
#
#   bash deploy/demo.sh          leaves the cluster running and the mount mounted, and says how to go on
#   bash deploy/demo.sh --stop   stops the cluster at the end and removes what it made (for CI);
#                                FS3_DEMO_STOP=1 does the same
#
# Fresh Debian 12: as root it installs what is missing (python3.11-venv, fuse3). As an ordinary user
# without FUSE it shows the same through the native client. Everything is in ./.fs3-demo; run it again
# and it starts from nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/setup.sh
. tests/setup.sh

stop=${FS3_DEMO_STOP:-0}
case ${1:-} in
    "") ;;
    --stop) stop=1 ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "usage: bash deploy/demo.sh [--stop]" >&2; exit 2 ;;
esac

demo=$PWD/.fs3-demo
cluster=$demo/cluster
mountpoint=$demo/mnt
work=$demo/work
victim=2
files_wanted=2000

seconds_since() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f s", b - a }'; }
fs3() { .venv/bin/fs3 "$@"; }

finish() {
    local status=$?
    trap - EXIT INT TERM
    if [ $status -ne 0 ]; then
        printf '\nThe demo FAILED (exit code %s). The last lines of the daemons:\n' "$status" >&2
        tail -n 5 "$cluster"/*/log "$cluster"/supervisor.log >&2 2>/dev/null || true
    fi
    if [ $status -ne 0 ] || [ "$stop" = 1 ]; then
        remove_everything
    fi
    exit $status
}

remove_everything() {
    [ -x .venv/bin/fs3 ] && [ -d "$cluster" ] && fs3 down --dir "$cluster" || true
    if mountpoint -q "$mountpoint" 2>/dev/null; then
        echo "not removed: something is still mounted on $mountpoint" >&2
        return
    fi
    rm -rf "$demo"
}

# Whether the kernel lets us mount; why not goes to standard output.
fuse_problem() {
    if [ ! -e /dev/fuse ]; then
        echo "there is no /dev/fuse here"
    elif [ "$(id -u)" != 0 ] && ! command -v fusermount3 >/dev/null; then
        echo "not root, and fusermount3 (package fuse3) is not installed"
    elif [ "$(id -u)" != 0 ] && [ ! -w /dev/fuse ]; then
        echo "not root, and /dev/fuse is not writable"
    fi
}

checksums() { # of every file below $1, by relative name
    (cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum)
}

copy_tree() { # local directory $1 to $2: files and directories, without compiled and foreign modules
    mkdir "$2"
    tar -C "$1" --exclude=__pycache__ --exclude=./site-packages --exclude=./dist-packages -c . |
        tar -C "$2" -x
}

# -- what differs between a mount and the native client: putting a tree in, and getting it back ----

mount_it() { fs3 mount "$mountpoint" --dir "$cluster" >/dev/null; }

put() { # local tree $1 as /$2
    if [ "$through" = mount ]; then
        cp -r "$1" "$mountpoint/$2"
        sync -f "$mountpoint"
    else
        fs3 cp -r -q "$1" "fs3:/$2" --dir "$cluster"
    fi
}

# Compares /$1 with the checksums in $2. Nothing may come from a cache of this machine's kernel: the
# mount is made anew, and the native client has none.
compare() {
    local tree=$1 expected=$2 began
    began=$(date +%s.%N)
    if [ "$through" = mount ]; then
        fs3 umount "$mountpoint" --dir "$cluster" >/dev/null
        mount_it
        checksums "$mountpoint/$tree" >"$work/found"
    else
        rm -rf "$work/back"
        fs3 cp -r -q "fs3:/$tree" "$work/back" --dir "$cluster"
        checksums "$work/back" >"$work/found"
        rm -rf "$work/back"
    fi
    if ! diff "$expected" "$work/found" >"$work/differences"; then
        head -5 "$work/differences" >&2
        echo "files read back DIFFER from what was written" >&2
        return 1
    fi
    echo "   $(wc -l <"$expected") files read from the servers, every sha256 equal ($(seconds_since "$began"))"
}

watch_until_healthy() {
    local began status last="" line
    began=$(date +%s.%N)
    for _ in $(seq 600); do
        status=$(fs3 status --dir "$cluster" --json) && break
        line=$(printf '%s' "$status" | .venv/bin/python -c '
import json, sys
targets = json.load(sys.stdin)["targets"]
away = [t for t in targets if t["public_state"] not in ("SERVING", None)]
print("; ".join(
    "target {target} is {public_state}".format(**t)
    + (" {sync_done_chunks} of {sync_total_chunks} chunks".format(**t) if t["sync_total_chunks"] else "")
    for t in away
))') || line="the metaserver does not answer"
        [ "$line" = "$last" ] || [ -z "$line" ] || echo "   $line"
        last=$line
        sleep 0.2
    done
    fs3 status --dir "$cluster" --json >/dev/null
    echo "   every target serves again ($(seconds_since "$began"))"
}

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "1. Installing"
install_packages fusermount3:fuse3
make_environment "."
if [ -d "$demo" ]; then
    say "   removing what an earlier run left in $demo"
    remove_everything
fi
mkdir -p "$work" "$mountpoint"
problem=$(fuse_problem)
through=mount
if [ -n "$problem" ]; then
    through=native
    say "   no mount: $problem. The same follows through the native client (fs3 cp)"
fi

say "2. Starting a cluster: 1 metaserver, 3 storageservers, every chunk on 3 of them"
fs3 up --dir "$cluster" --nodes 3 --targets-per-node 2 --replicas 3 --cluster-id demo
if [ "$through" = mount ] && ! mount_it; then
    through=native
    say "   the kernel refuses to mount (see above). The same follows through the native client"
fi
[ "$through" = native ] || say "   mounted on $mountpoint"

say "3. Copying real files onto it"
library=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir "$work/source"
copy_tree "$library" "$work/source/library"
what="the Python standard library ($library)"
if [ "$(find "$work/source" -type f | wc -l)" -lt $files_wanted ]; then
    copy_tree "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" "$work/source/packages"
    what="$what and the packages in .venv"
fi
files=$(find "$work/source" -type f | wc -l)
bytes=$(find "$work/source" -type f -printf '%s\n' | awk '{ s += $1 } END { printf "%.1f MiB", s / 1048576 }')
echo "   $what: $files files, $bytes"
if [ "$files" -lt $files_wanted ]; then
    echo "fewer than $files_wanted files to copy" >&2
    exit 1
fi
checksums "$work/source" >"$work/expected"
began=$(date +%s.%N)
put "$work/source" source
echo "   written ($(seconds_since "$began"))"

say "4. Reading everything back"
compare source "$work/expected"

say "5. Killing storageserver $victim (kill -9), and holding it down"
fs3 node kill $victim --hold --dir "$cluster"
began=$(date +%s.%N)
compare source "$work/expected"
echo "   with two of three servers; new files can be written, too:"
mkdir "$work/later"
find "$work/source" -type f | LC_ALL=C sort | awk "NR <= 200" | xargs cp --backup=numbered -t "$work/later"
checksums "$work/later" >"$work/expected-later"
put "$work/later" later
compare later "$work/expected-later"
fs3 status --dir "$cluster" || true # its exit code says that a server is away

say "6. Letting it return; it takes what it missed from its neighbours"
fs3 node start $victim --dir "$cluster"
watch_until_healthy

say "7. Comparing all three copies of every chunk, on the servers themselves"
fs3 verify --wait 60 --dir "$cluster"
compare source "$work/expected"
compare later "$work/expected-later"
fs3 status --dir "$cluster"

say "Nothing was lost."
if [ "$stop" = 1 ]; then
    exit 0
fi
rm -rf "$work"
echo
echo "The cluster runs on. What you can do now:"
hint() { printf '   %-38s %s\n' "$1" "$2"; }
[ "$through" = native ] || hint "ls ${mountpoint#"$PWD/"}" "use it as any directory"
hint "export FS3_DIR=${cluster#"$PWD/"}" "say which cluster is meant, for what follows"
hint ". .venv/bin/activate" "put fs3 into your PATH"
hint "fs3 status --watch" "look at the servers"
hint "fs3 cp -r DIRECTORY fs3:/data" "copy without the mount"
hint "fs3 node kill 1" "break it again"
hint "fs3 down" "stop it; fs3 up starts it again with its data"
hint "rm -r ${demo#"$PWD/"}" "remove it, after fs3 down"
