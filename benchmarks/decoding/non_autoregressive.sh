#!/bin/sh
# Masked models before and after DiMS, on raw and on sequence-distilled text: BLEU and seconds at 1,
# 2, 4 and 8 passes beside beam search.
#
#     sh benchmarks/decoding/non_autoregressive.sh multi30k cmlm dims dims-further cmlm-distilled dims-distilled
#
# The first word is a folder of fastkd/recipes/, the others are recipes in it, in the order of
# training. Run it where data/CORPUS is; it goes on where it was stopped.
set -eu
recipes=$1
shift
data=data/$recipes
runs=runs/$recipes
table=${OUT:-$runs}/passes.txt

train() {
    [ -d "prepared/$recipes" ] || fastkd prepare "$recipes/teacher"
    fastkd train "$recipes/$1"
}

distil() {
    mkdir -p "$runs/distilled"
    [ -f "$runs/distilled/train.en" ] || zcat "$data/train.en.gz" >"$runs/distilled/train.en"
    [ -f "$runs/distilled/train.de" ] ||
        fastkd translate "$runs/teacher" -i "$runs/distilled/train.en" -o "$runs/distilled/train.de"
    [ -d "prepared/$recipes-distilled" ] || fastkd prepare "$recipes/cmlm-distilled"
}

score() {
    echo "== $*"
    begin=$(date +%s.%N)
    fastkd score "$@" | grep BLEU
    end=$(date +%s.%N)
    echo "seconds, start of the program included: $(echo "$end - $begin" | bc)"
}

train teacher
for recipe in "$@"; do
    case $recipe in *distilled*) distil ;; esac
    train "$recipe"
done
mkdir -p "$(dirname "$table")"
{
    score "$runs/teacher" test
    score "$runs/teacher" test --beam 1
    for recipe in "$@"; do
        for passes in 1 2 4 8; do
            score "$runs/$recipe" test --passes $passes
        done
    done
} | tee "$table"
