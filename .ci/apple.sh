#!/usr/bin/env bash
# Type-checks library and programs for Apple's systems, Metal included, on x86-64 Debian 12. There is no standard library for them
# in the distribution: it is checked from its sources. Nothing is linked or run.
set -euo pipefail
cd "$(dirname "$0")/.."

cannot() {
    echo "Apple's target was not checked: $*" >&2
    exit 1
}

[ "$(uname -m)" = x86_64 ] || cannot 'not an x86-64 machine'
command -v apt-get >/dev/null || cannot 'no apt-get'

packages=(rustc-web rust-web-src cargo-web)
root=()
[ "$(id -u)" = 0 ] || root=(sudo -n)
present=$(dpkg-query -W -f='${db:Status-Status}\n' "${packages[@]}" 2>/dev/null | grep -cx installed || true)
if [ "$present" != "${#packages[@]}" ]; then
    export DEBIAN_FRONTEND=noninteractive
    "${root[@]}" apt-get update -qq || cannot 'apt-get update failed'
    "${root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null || cannot 'apt-get install failed'
fi

export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/apple
/usr/bin/cargo check --locked --quiet -Zbuild-std=std,panic_abort --target aarch64-apple-darwin --lib --bins
echo "checked for aarch64-apple-darwin in ${SECONDS} s"
