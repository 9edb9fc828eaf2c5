#!/usr/bin/env bash
# Builds Dockerfile.spyre with neither a Docker engine nor an image registry, and tries what came
# out: the tests and a server, as the image's user. For root on Debian.
#     tools/image.sh [ARCHIVE]    with ARCHIVE the image is kept there, for `docker load`
# SCRATCH is where it works (/var/tmp), PYTEST what the tests run gets ("-q").
set -euo pipefail
archive=${1:+$(realpath "$1")}
cd "$(dirname "$0")/.."
scratch=${SCRATCH:-/var/tmp}

refuse() { echo "image: $1" >&2; exit 1; }
[ "$(id -u)" = 0 ] || refuse "needs root, to make a base image and to build without a daemon"
command -v apt-get >/dev/null || refuse "needs Debian; elsewhere: docker build -f Dockerfile.spyre ."
require_port() {
    ! (: </dev/tcp/127.0.0.1/8000) 2>/dev/null || refuse "port 8000 is in use, the image's server needs it"
}
require_port
command -v buildah debootstrap >/dev/null || {
    echo "image: installing buildah and debootstrap"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah debootstrap >/dev/null
}

work=$(mktemp -d -p "$scratch" spyre-image.XXXXXX)
server=
clean() {
    [ -z "$server" ] || kill -KILL -- "-$server" 2>/dev/null || true
    # never into a directory of this machine that is still mounted there
    rm -rf --one-file-system "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM
# vfs and chroot need neither a kernel's overlay nor privileges that containers lack
export BUILDAH_ISOLATION=chroot
b() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }
inside() { b run --env OMP_NUM_THREADS "$container" -- "$@"; }
say() {
    awk -v what="$1" -v s="$SECONDS" -v bytes="$(du -sb "$work" | cut -f1)" \
        'BEGIN { printf "image: %-40s %5.1f min %6.2f GB\n", what, s / 60, bytes / 1e9 }'
}

debootstrap --variant=minbase bookworm "$work/base" >"$work/debootstrap.log" || {
    tail "$work/debootstrap.log" >&2; refuse "debootstrap failed, see above"; }
container=$(b from scratch)
b copy -q "$container" "$work/base" / >/dev/null
b commit -q "$container" spyre-base >/dev/null
b rm "$container" >/dev/null
rm -rf "$work/base"
say "base image"

# This machine's pip settings reach the build as a secret; the directories that they name are
# mounted under another root, where they hide nothing of the image.
host=/run/host
mounts=()
python3 -m pip config list | sed -nE "s/^(:env:|global)\.([a-z-]+)='(.*)'$/\2 = \3/p" \
    | sed 's/\\n/ /g' | awk '!seen[$1]++' >"$work/settings"
for word in $(grep -oE '(file://)?/[^ ]+' "$work/settings"); do
    path=${word#file://}
    # a local index links from simple/ to its neighbours
    [ "$path" = "$word" ] || path=$(dirname "$path")
    [ ! -e "$path" ] || mounts+=(--volume "$path:$host$path:ro")
done
{ echo "[global]"; sed -E "s#(= | |file://)/#\1$host/#g" "$work/settings"; } >"$work/pip.conf"
b bud --format docker --pull=never -f Dockerfile.spyre -t spyre-bench \
    --build-arg BASE=localhost/spyre-base --build-arg TORCH_INDEX="${TORCH_INDEX:-}" \
    --secret id=pip,src="$work/pip.conf" "${mounts[@]}" . >"$work/build.log" 2>&1 || {
    tail -n 40 "$work/build.log" >&2; refuse "the build failed, see above"; }
say "image"

container=$(b from spyre-bench)
user=$(inside id -u)
[ "$user" != 0 ] || refuse "the image's user is root"
# shellcheck disable=SC2086  # several words on purpose
inside python -m pytest -p no:cacheprovider ${PYTEST:--q}
say "its tests, as user $user"

# What an engine would run and ask, read from the image. There is no engine to do it.
words() { b inspect --format "{{range $1}}{{println .}}{{end}}" "$container" | sed '/^$/d'; }
mapfile -t serve < <(words .Docker.Config.Entrypoint; words .Docker.Config.Cmd)
mapfile -t healthy < <(words .Docker.Config.Healthcheck.Test | tail -n +2)  # the first is CMD
require_port  # nobody else's server is asked below
set -m  # a process group of its own
inside "${serve[@]}" >"$work/server.log" 2>&1 &
server=$!
set +m
until inside "${healthy[@]}" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || { tail -n 40 "$work/server.log" >&2; refuse "the server ended, see above"; }
    [ "$SECONDS" -lt "${deadline:=$((SECONDS + 900))}" ] || refuse "the server is not healthy after 15 minutes"
    sleep 2
done
say "its server, healthy"
answer=$(inside python - <<'PYTHON'
import json
import urllib.request

request = {"model": "/opt/cache/smollm2", "prompt": "The capital of France is", "max_tokens": 8}
with urllib.request.urlopen(
    urllib.request.Request(
        "http://127.0.0.1:8000/v1/completions",
        json.dumps(request | {"temperature": 0}).encode(),
        {"Content-Type": "application/json"},
    )
) as response:
    print(json.load(response)["choices"][0]["text"].split()[0])
PYTHON
)
case $answer in *Paris*) ;; *) refuse "asked for the capital of France, the server says $answer" ;; esac
say "its completion: $answer"

[ -z "$archive" ] || { b push -q spyre-bench "docker-archive:$archive:spyre-bench"; say "kept in $archive"; }
