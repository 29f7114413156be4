#!/usr/bin/env bash
# The stand-in's runs, from dialogues to reports: for each of three seeds, which deal the dialogues to the splits and begin
# the training, temperature and threshold from the eval split, then the test split and the article's eval set; and the
# article's eval set once more by a model that was trained without the dialogues that set was cut from (..._apart). With
# the first seed also how early a dialogue is found out, and, on 400 rows, how often a written answer agrees with the score.
#
#   benchmarks/standin.sh MODEL DIALOGS EVAL0819.jsonl OUTPUT
#
# MODEL was a small pretrained model (Gemma 3 270M, cut vocabulary) that stands in for Qwen2-1.5B-Instruct where its
# weights cannot be had; with Qwen2's folder or hub id the same lines make the real thing. The learning rate and the
# number of epochs were chosen by loss and F1 on the eval split; the test split was looked at afterwards. Another recipe
# is tried with TRAIN="--num-train-epochs 3 ..." and PREPARE="--augment 0 ..." in the environment. Without
# --line-loss-weight it made results/standin_no_lines_* and, run before, standin_earlier_*; without noisy copies besides,
# results/standin_not_augmented_*.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1 dialogs=$2 eval0819=$3 output=$4
read -ra prepare <<<"${PREPARE:---augment 0.5}"
read -ra train <<<"${TRAIN:---num-train-epochs 2 --learning-rate 1e-3 --line-loss-weight 0.3}"
gpus=$( (nvidia-smi -L 2>/dev/null || true) | wc -l)  # several share the seeds

# train_one SEED NAME OPTIONS: data-NAME, prepared with the OPTIONS besides, and run-NAME, calibrated
train_one() {
    local seed=$1 data=$output/data-$2 run=$output/run-$2
    python3 -m data.prepare --source "$dialogs" --output "$data" --seed "$seed" "${prepare[@]}" "${@:3}"
    python3 trainer.py --model "$model" --train "$data/train.jsonl" --eval "$data/eval.jsonl" --output "$run" \
        --seed "$seed" "${train[@]}" --tokens-per-pass 8192 --compile-layers false --per-device-train-batch-size 64 \
        --per-device-eval-batch-size 128 --eval-steps 196 --save-steps 196
    python3 evaluate.py --model "$model" --checkpoint "$run" --data "$data/eval.jsonl" --calibrate --cost-ratio 1
}

# judge NAME DATA REPORT
judge() { python3 evaluate.py --model "$model" --checkpoint "$output/run-$1" --data "$2" --output "$output/$3.json"; }

one_seed() {
    local seed=$1 suffix=$2
    if ((gpus > 1)); then export CUDA_VISIBLE_DEVICES=$((seed % gpus)); fi
    train_one "$seed" "$seed"
    judge "$seed" "$output/data-$seed/test.jsonl" "standin_split_by_case$suffix" &
    judge "$seed" "$eval0819" "standin_eval0819$suffix" &
    wait
}

one_seed_apart() {
    local seed=$1 suffix=$2
    if ((gpus > 1)); then export CUDA_VISIBLE_DEVICES=$((seed % gpus)); fi
    train_one "$seed" "apart-$seed" --held-out "$eval0819" --shares 0.85 0.1 0.05
    judge "apart-$seed" "$eval0819" "standin_eval0819_apart$suffix"
}

for make in one_seed one_seed_apart; do
    $make 0 "" &
    $make 1 _seed1 &
    $make 2 _seed2 &
done
wait

data=$output/data-0 run=$output/run-0
cp "$data/leakage.json" "$output/standin_leakage.json"
head -n 400 "$data/test.jsonl" >"$data/test400.jsonl"
python3 evaluate.py --model "$model" --checkpoint "$run" --data "$data/test400.jsonl" --method generate \
    --output "$output/standin_generate.json" &
python3 early_warning.py --model "$model" --checkpoint "$run" --source "$dialogs" --eval "$data/eval.jsonl" \
    --test "$data/test.jsonl" --output "$output/early_warning.json" &
wait
