#!/bin/sh
# Installs EdgeNewton into /opt/edgenewton/venv, and its daemon as a service of systemd. Run it as root, in a checkout.
#
# EXTRAS: what to install of it; daemon,flower for a device that Flower asks to train.
# PIP_OPTIONS: of pip, in place of PyTorch's index of CPU builds; "--no-index --find-links FOLDER" without a network.
# PREFIX: puts all of it below another folder; then no user is made and no service started.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
extras=${EXTRAS:-daemon}
prefix=${PREFIX:-}

python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "install: Python 3.11 or newer is needed; name it: PYTHON=/path/to/python3.11 $0" >&2
    exit 1
fi
if [ -z "$prefix" ] && [ "$(id -u)" -ne 0 ]; then
    echo "install: run it as root (sudo $0), or give a PREFIX" >&2
    exit 1
fi

mkdir -p "$prefix/opt/edgenewton" "$prefix/etc/edgenewton" "$prefix/etc/systemd/system"
"$python" -m venv "$prefix/opt/edgenewton/venv"
install_wheels() {
    "$prefix/opt/edgenewton/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$project/constraints.txt" --only-binary=:all: "$@"
}
# PyTorch first, in its CPU build: that of PyPI brings gigabytes of CUDA along.
# shellcheck disable=SC2086
install_wheels ${PIP_OPTIONS---index-url https://download.pytorch.org/whl/cpu} torch
# shellcheck disable=SC2086
install_wheels ${PIP_OPTIONS-} "$project[$extras]"

install -m 644 "$here/daemon.toml" "$prefix/etc/edgenewton/daemon.toml"
install -m 644 "$project/deploy/systemd/edge-client.service" "$prefix/etc/systemd/system/edge-client.service"
"$prefix/opt/edgenewton/venv/bin/edge-client" daemon --check-config --config "$prefix/etc/edgenewton/daemon.toml"
if [ -z "$prefix" ]; then
    id edgenewton >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin edgenewton
    systemctl daemon-reload
    systemctl enable --now edge-client
fi
