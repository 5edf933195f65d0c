#!/bin/sh
# The README's figures of a CPU, anew: about half an hour on two idle cores. PYTHON names the Python.
#
#     benchmarks/cpu.sh
set -e
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python="${PYTHON:-.venv/bin/python}"

bench() {
    "$python" -W ignore -m fastkd bench --device cpu --out benchmarks/results --seconds 2 "$@"
}

tokens="--shapes N=512,V=8000,Ds=256,Dt=512 --shapes N=2048,V=8000,Ds=256,Dt=512"
bench --op alignment-row --against reference,compile,torch
bench --op training --against reference,torch
bench --op linear-ce --op linear-kd --op linear-tie $tokens --against reference,compile,torch,pytorch
bench --op alignment-map --op alignment-mixture --shapes B=16,T=128 --shapes B=2,T=1024 \
    --against reference,torch
"$python" -m benchmarks.readme
