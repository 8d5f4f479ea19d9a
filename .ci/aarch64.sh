#!/usr/bin/env bash
# Builds the library's tests for 64-bit ARM and runs them under emulation, on x86-64 Debian 12: the distribution's compiler
# has an ARM standard library, its cross linker a C library, and qemu the CPUs. Emulation proves bits, never speed.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf -- '--- %s (%ss)\n' "$*" "$SECONDS"; }

# Without the tools nothing is proven, so that is a failure.
cannot() {
    echo "aarch64 was not tested: $*" >&2
    exit 1
}

target=aarch64-unknown-linux-gnu
packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static rustc-web)

[ "$(uname -m)" = x86_64 ] || cannot 'not an x86-64 machine'
command -v apt-get >/dev/null || cannot 'no apt-get'
root=()
[ "$(id -u)" = 0 ] || root=(sudo -n)

present=$(dpkg-query -W -f='${db:Status-Status}\n' "${packages[@]}" 2>/dev/null | grep -cx installed || true)
if [ "$present" != "${#packages[@]}" ] || [ ! -d "/usr/lib/rustlib/$target" ]; then
    say "installing ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${root[@]}" dpkg --add-architecture arm64 || cannot 'dpkg failed'
    "${root[@]}" apt-get update -qq || cannot 'apt-get update failed'
    "${root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null || cannot 'apt-get install failed'
    # The ARM standard library must be of the same version to the letter. Unpacked, not installed: its dependencies are for ARM.
    version=$(dpkg-query -W -f='${Version}' libstd-rust-web-dev)
    download=$(mktemp -d)
    chmod 755 "$download"
    (cd "$download" && apt-get download -qq "libstd-rust-web-dev:arm64=$version") || cannot 'no ARM standard library'
    "${root[@]}" dpkg -x "$download"/*.deb /
    rm -rf "$download"
fi

export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/arm
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64-static -L /usr/aarch64-linux-gnu'
# The kernels are optimised as ever; the rest only has to compile soon.
export CARGO_PROFILE_DEV_DEBUG=0
fast=(--config 'profile.dev.package."*".opt-level=0')
say "$("$RUSTC" --version), $(qemu-aarch64-static --version | head -n 1)"

# The tests of invariance take hundreds of passes, which take minutes under emulation; parity takes half of one.
tests=(--lib --test parity)
run() { cargo test --locked --quiet --no-default-features --target "$target" "${fast[@]}" "$@"; }

say "building ${tests[*]}"
run "${tests[@]}" --no-run

# A tier that is required and not there fails; the same arithmetic without it must give the same results.
emulate() {
    export QEMU_CPU=$1 RDT_REQUIRE_ISA=$2
    say "kernels, team and quantisers on $QEMU_CPU, $RDT_REQUIRE_ISA required"
    run --lib -- kernels:: team:: quant::
    for name in "${tests[@]}"; do
        case $name in --*) continue ;; esac
        say "$name on $QEMU_CPU"
        run --test "$name"
    done
}
emulate max scalar,neon,neon-dotprod,neon-i8mm
emulate cortex-a76 scalar,neon,neon-dotprod
emulate cortex-a53 scalar,neon

say 'the programs compile'
cargo check --locked --quiet --target "$target" "${fast[@]}" --bins
say done
