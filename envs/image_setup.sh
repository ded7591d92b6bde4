#!/bin/sh
# Inside a fresh Debian 12, as root, with this repository at /src: what both recipes of envs/ do.
# TORCH names the build of torch, with pip's arguments.
set -eu
cd /src
apt-get update
# shellcheck disable=SC2046 # one word a package
apt-get install -y --no-install-recommends $(cat envs/debian-packages.txt) python3-pip
site=/usr/local/lib/python3.11/dist-packages
install() { python3 -m pip install --no-cache-dir --break-system-packages "$@"; }
# shellcheck disable=SC2086 # TORCH holds arguments
install -c envs/requirements.lock ${TORCH:-torch==2.13.0} ".[run]"
install --no-deps -r envs/requirements-embedded.lock
sh envs/trim_packages.sh $site
mkdir -p /usr/local/share/invarlock
cd /
PYTHONPATH=$site python3 -m invarlock advanced provenance label \
  --packages /src/envs/debian-packages.txt /src/envs/requirements.lock /src/envs/requirements-embedded.lock \
  --out /usr/local/share/invarlock/image.json
apt-get purge -y --auto-remove python3-pip
rm -rf /var/lib/apt/lists/* /var/cache/apt /src
