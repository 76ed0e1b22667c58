#!/usr/bin/env bash
# Puts the C headers of ONNX Runtime into a folder: tools/ort_header.sh DIR
#
# No Python wheel has them. Debian 13 has, as libonnxruntime-dev; on an older Debian the package itself cannot be
# installed, but it can be downloaded, and headers are the same everywhere. Nothing is installed.
set -euo pipefail
target=$(realpath -m "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work"/{lists,archives}/partial "$work/state" "$target"
sources=/etc/apt/sources.list.d/debian.sources
awk -v RS= 'NR == 1' "$sources" | sed 's/^Suites:.*/Suites: trixie/' >"$work/trixie.sources"
options=(
    -o Dir::Etc::SourceList="$work/trixie.sources" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State="$work/state" -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o APT::Sandbox::User=root
)
apt-get -qq "${options[@]}" update
(cd "$work" && apt-get -qq "${options[@]}" download libonnxruntime-dev)
dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work/package"
cp "$work"/package/usr/include/onnxruntime/*.h "$target"
