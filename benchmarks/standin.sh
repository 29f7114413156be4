#!/usr/bin/env bash
# The runs behind results/standin_*.json and results/tried.json: several recipes on one split by dialogue, each judged
# on eval (to choose by), on test, and on the article's own eval set.
#
#   benchmarks/standin.sh MODEL DIALOGS EVAL0819.jsonl OUTPUT
#
# The recipes run side by side: a step of so small a model is launch-bound and leaves most of a GPU idle.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1 dialogs=$2 eval0819=$3 output=$4
export OMP_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false

python3 -m data.prepare --source "$dialogs" --output "$output/data"

run() {  # run NAME SEED [trainer options]
    local name=$1 seed=$2 run="$output/$1"
    shift 2
    python3 trainer.py --model "$model" --train "$output/data/train.jsonl" --eval "$output/data/eval.jsonl" \
        --output "$run" --seed "$seed" --per-device-train-batch-size 64 --per-device-eval-batch-size 64 \
        --eval-steps 160 --save-steps 160 --optim paged_adamw_32bit "$@" >"$run.log" 2>&1
    for data in eval test eval0819; do
        local file="$output/data/$data.jsonl"
        [ $data = eval0819 ] && file=$eval0819
        python3 evaluate.py --model "$model" --checkpoint "$run" --data "$file" \
            --output "$output/reports/$name.$data.json" >>"$run.log" 2>&1
    done
    echo "done: $name"
}

mkdir -p "$output/reports"
run lr2e-4 0 --learning-rate 2e-4 --num-train-epochs 3 &
run lr5e-4 0 --learning-rate 5e-4 --num-train-epochs 3 &
run lr1e-3 0 --learning-rate 1e-3 --num-train-epochs 3 &
run lr1e-3-dropout0.05 0 --learning-rate 1e-3 --num-train-epochs 3 --lora-dropout 0.05 &
run lr1e-3-r64 0 --learning-rate 1e-3 --num-train-epochs 3 --lora-r 64 --lora-alpha 128 &
run lr5e-4-names 0 --learning-rate 5e-4 --num-train-epochs 3 --keep-speaker-names &
wait
