#!/usr/bin/env bash
# Makes docs/performance.md anew on an x86-64 machine with AVX-512: builds, models, measurements.
#
#   tools/lora-bench/report.sh BASES WORK [NOTE]
#
# BASES holds the folders smollm2-135m-instruct and minilm-l6 as Hugging Face has them. WORK keeps builds and models for the
# next time (8 GB). NOTE says how busy the machine is. RUN= stands before every measurement: RUN='chrt -f 10' keeps other
# programs off the CPUs meanwhile. PYTHON= is a python with the packages that tests/onnx/beside.py names; without it the section on
# encoders is left out.
set -euo pipefail
bases=$(realpath "$1") work=$(mkdir -p "$2" && realpath "$2") note=${3:-}
cd "$(dirname "$0")/../.."
rounds=${ROUNDS:-3}

# A build of llama.cpp for each instruction set; our own kernels are chosen when they run. All are linked statically.
host=$(rustc -vV | sed -n 's/^host: //p')
peer() {
    local flags="-march=$2"
    CFLAGS=$flags CXXFLAGS=$flags CARGO_TARGET_DIR=$work/$1 RUSTFLAGS='-C target-feature=+crt-static' cargo build --release \
        -p lora-bench --target "$host" --features llama-cpp,llama-cpp-sys-2/static-openmp,llama-cpp-sys-2/static-stdcxx
}
bench() { echo "$work/$1/$host/release/lora-bench"; }
peer avx2 x86-64-v3
peer avx512 icelake-server
also=(--also "avx2=$(bench avx2)")
if grep -qw avx_vnni /proc/cpuinfo; then
    peer avxvnni alderlake
    also+=(--also "avxvnni=$(bench avxvnni)")
fi
cargo build --release -p lora-pack -p lora-run
pack=${CARGO_TARGET_DIR:-target}/release/lora-pack run=${CARGO_TARGET_DIR:-target}/release/lora-run

# The same blocks on both sides: every matrix in four bits, or in eight.
pair() { # NAME BITS BASE-OPTIONS…
    local name=$1 bits=$2 f16=$work/$1-f16.gguf gguf=$work/$1-q$2_0.gguf lpk=$work/$1-i$2.lpk
    shift 2
    [[ -e $gguf ]] || { [[ -e $f16 ]] || "$pack" export --to gguf "$@" -o "$f16"; "$(bench avx2)" quantize "$f16" "$gguf" --bits "$bits" >"$work/quantize.log" 2>&1; }
    "$pack" merge --base "$gguf" ${3:+"$3"} -o "$lpk"
    pairs+=("$lpk=$gguf")
}
pairs=()
cargo run --release -p conformance --example merge_speed -- "$work/billion" none
pair smollm2-135m 4 --base "$bases/smollm2-135m-instruct"
pair smollm2-135m 8 --base "$bases/smollm2-135m-instruct"
pair synthetic-1.2b 4 --base "$work/billion/base" --no-tokenizer
for format in q8 q8r; do "$pack" merge --base "$bases/minilm-l6" --quant $format -o "$work/minilm-$format.lpk"; done

encoders=()
if [[ ${PYTHON:-} ]]; then
    for isa in avx2 avx512; do for format in q8 q8r; do
        echo "Our kernels $isa, \`$format\`; ONNX Runtime, a scale per channel, takes the best that the CPU has:"; echo
        ${RUN:-} "$PYTHON" tests/onnx/beside.py "$bases/minilm-l6" "$work/minilm-$format.lpk" --run "$run" --isa $isa --rounds "$rounds" | sed '/^fused/d; s/^[0-9]* tokens: .*/&\n/'
        echo
    done; done >"$work/encoders.md"
    encoders=(--encoders "$work/encoders.md")
fi
${RUN:-} "$(bench avx512)" report "${pairs[@]}" "${also[@]}" "${encoders[@]}" --threads 1,2 --rounds "$rounds" --generate 24 \
    -o docs/performance.md ${note:+--note "$note"}
