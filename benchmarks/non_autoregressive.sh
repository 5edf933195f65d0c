#!/bin/sh
# Masked models before and after DiMS, on raw and on sequence-distilled text: BLEU and sentences a
# second at 1, 2, 4 and 8 passes. Run at the top of a checkout whose data/tatoeba-en-de/ holds the
# corpus; goes on where it was stopped. What is trained is in fastkd/recipes/tatoeba-en-de/.
set -eu
recipes=tatoeba-en-de
data=data/$recipes
masked="cmlm dims dims-further cmlmc dims-cmlmc cmlm-distilled dims-distilled"
table=${OUT:-runs/$recipes}/passes.txt

fastkd prepare $recipes/teacher
fastkd train $recipes/teacher

mkdir -p $data/distilled
cp $data/train.en.gz $data/distilled/
if [ ! -f $data/distilled/train.de ]; then
    zcat $data/train.en.gz | fastkd translate runs/$recipes/teacher -o $data/distilled/train.de
fi
fastkd prepare $recipes/cmlm-distilled

for recipe in $masked; do
    fastkd train $recipes/$recipe
done

score() {
    echo "== $*"
    begin=$(date +%s.%N)
    fastkd score "$@" | grep BLEU
    end=$(date +%s.%N)
    echo "seconds, start of the program included: $(echo "$end - $begin" | bc)"
}

mkdir -p "$(dirname "$table")"
{
    score runs/$recipes/teacher test
    score runs/$recipes/teacher test --beam 1
    for recipe in $masked; do
        for passes in 1 2 4 8; do
            score runs/$recipes/$recipe test --passes $passes
        done
    done
} | tee "$table"
python -m benchmarks.mask_predict runs/$recipes/teacher runs/$recipes/dims | tee -a "$table"
