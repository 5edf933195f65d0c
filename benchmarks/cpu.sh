#!/bin/sh
# The figures of a CPU anew, the most telling first, in 25 minutes on two idle cores.
#
#     [OMP_NUM_THREADS=2] [PREPARED=prepared/wmt22-de-dsb] [LIMIT=1500] benchmarks/cpu.sh [--tiny]
#
# PREPARED is what `fastkd prepare wmt22-de-dsb/teacher` wrote; without it the steps on real batches
# are left out. Each case is written when it is measured, so what LIMIT, in seconds, cuts off is only
# what comes later. --tiny tries everything out at sizes that mean nothing, into a folder that is
# then removed. PYTHON names the Python.
cd "$(dirname "$0")/.." || exit 1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" PYTHONPATH=".:kernels${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONWARNINGS=ignore
python="${PYTHON:-.venv/bin/python}"
end=$(($(date +%s) + ${LIMIT:-1500}))
failed=0

if [ "$1" = --tiny ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
    main="B=2,T=48" rest="B=2,T=32" tokens="N=16,V=64,Ds=8,Dt=16" more="N=32,V=64,Ds=8,Dt=16"
    scale=smoke rounds=2 seconds=0 attention=reference,plain,torch,torch-uncompiled
    losses=reference,plain,torch memory=--no-memory
else
    out=benchmarks/results
    main="B=2,T=1024 B=16,T=128 B=64,T=32" rest="B=32,T=64 B=8,T=256 B=4,T=512"
    tokens="N=3072,V=16000,Ds=256,Dt=256 N=256,V=16000,Ds=256,Dt=256"
    more="N=1024,V=16000,Ds=256,Dt=256 N=32,V=16000,Ds=256,Dt=256"
    scale=cpu rounds=15 seconds=5 attention=reference,plain,compile,torch,torch-uncompiled
    losses=reference,plain,compile,torch memory=--memory
fi

part() {
    left=$((end - $(date +%s)))
    if [ "$left" -le 0 ]; then
        echo "no time left for: $*"
        return
    fi
    timeout "$left" "$python" -m "$@"
    status=$?
    [ "$status" -eq 0 ] && return
    echo "ended with status $status: $*"
    [ "$status" -eq 124 ] || failed=1
}

# bench OPERATIONS SHAPES PROVIDERS
bench() {
    for operation in $1; do
        for shape in $2; do
            part fastkd bench --device cpu --op "$operation" --shapes "$shape" --against "$3" \
                --seconds "$seconds" "$memory" --out "$out"
        done
    done
}

# real MODULE: on the batches of a corpus
real() {
    [ -n "$PREPARED" ] || { echo "PREPARED is not set: $1 is left out"; return; }
    part "$1" "$PREPARED" --rounds "$rounds" --out "$out"
}

bench "alignment-row alignment-map" "$main" "$attention"
bench "linear-tie linear-kd" "$tokens" "$losses"
bench linear-ce "$tokens" "$losses,pytorch,pytorch-chunked"
bench training "$scale" reference,torch
real benchmarks.training.alignment_step
real benchmarks.training.throughput
bench alignment-mixture "$main" "$attention"
bench alignment-row "$rest" "$attention"
bench "linear-tie linear-ce" "$more" reference,plain,torch

[ "$1" = --tiny ] || "$python" -m benchmarks.readme --pictures || failed=1
exit "$failed"
