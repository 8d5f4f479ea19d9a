#!/usr/bin/env bash
# Calibration reports, opened by a browser without a network: light and dark, on a desk and on a phone. Skipped where there is no
# Chromium, unless REQUIRE_BROWSER=1. With a folder as argument, pictures of the pages are kept there.
set -euo pipefail
cd "$(dirname "$0")/.."

reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
RDT_REPORTS=$reports cargo test --locked --quiet --lib -- --exact calibrate::report::tests::pages >/dev/null
python3 tests/report_browser.py ${1:+--shots "$1"} "$reports"/*.html
