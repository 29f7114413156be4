#!/usr/bin/env bash
# The run behind results/standin_*.json, from dialogues to reports: the test split, the article's eval set, and, on 400
# rows of the test split, how often a written answer agrees with the score.
#
#   benchmarks/standin.sh MODEL DIALOGS EVAL0819.jsonl OUTPUT
#
# MODEL was a small pretrained model (Gemma 3 270M, cut vocabulary) that stands in for Qwen2-1.5B-Instruct where its
# weights cannot be had; with Qwen2's folder or hub id the same lines make the real thing. The learning rate and the
# number of epochs were chosen by loss and F1 on the eval split; the test split was looked at afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1 dialogs=$2 eval0819=$3 output=$4

python3 -m data.prepare --source "$dialogs" --output "$output/data"
python3 trainer.py --model "$model" --train "$output/data/train.jsonl" --eval "$output/data/eval.jsonl" \
    --output "$output/run" --num-train-epochs 2 --learning-rate 1e-3 --lora-dropout 0.05 \
    --per-device-train-batch-size 64 --per-device-eval-batch-size 64 --eval-steps 160 --save-steps 160
python3 evaluate.py --model "$model" --checkpoint "$output/run" --data "$output/data/test.jsonl" \
    --output "$output/standin_split_by_case.json" &
python3 evaluate.py --model "$model" --checkpoint "$output/run" --data "$eval0819" \
    --output "$output/standin_eval0819.json" &
head -n 400 "$output/data/test.jsonl" >"$output/data/test400.jsonl"
python3 evaluate.py --model "$model" --checkpoint "$output/run" --data "$output/data/test400.jsonl" --method generate \
    --output "$output/standin_generate.json" &
wait
