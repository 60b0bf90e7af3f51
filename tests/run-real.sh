#!/usr/bin/env bash
# Accuracy of trained models: tests/run-real.sh [--assets a,b] [--quants f32,q8,q4] [--lines N] [--bless]
# Needs the kit's assets (LORA_PACK_SHARED or ../shared) and, for the larger bases, LORA_PACK_BASES; see tests/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
while (($#)); do
  case $1 in
    --assets) export REAL_ASSETS=$2; shift 2 ;;
    --quants) export REAL_QUANTS=$2; shift 2 ;;
    --lines) export REAL_LINES=$2; shift 2 ;;
    --bless) export BLESS=1; shift ;;
    *) sed -n '2,3s/^# //p' "$0" >&2; exit 2 ;;
  esac
done
exec cargo test --release -q -p conformance --test real -- --ignored
