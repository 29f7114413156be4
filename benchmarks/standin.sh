#!/usr/bin/env bash
# The stand-in's runs, from dialogues to reports: for each of three seeds, which deal the dialogues to the splits and begin
# the training, temperature and threshold from the eval split, then the test split and the article's eval set; and the
# article's eval set once more by a model that was trained without the dialogues that set was cut from (..._apart), also
# with the labels that the corpus gives its rows (..._relabelled_apart). With the first seed also how early a dialogue is
# found out, and, on 400 rows, how often a written answer agrees with the score. "so_far" is "split" once more, labelled
# as the article's eval set is (data.prepare --labels so-far); the stand-in was not trained on that yet.
#
#   benchmarks/standin.sh MODEL DIALOGS EVAL0819.jsonl OUTPUT [split] [apart] [so_far] [early]     # default: all four
#
# MODEL was a small pretrained model (Gemma 3 270M, cut vocabulary) that stands in for Qwen2-1.5B-Instruct where its
# weights cannot be had; with Qwen2's folder or hub id the same lines make the real thing. The learning rate and the
# number of epochs were chosen by loss and F1 on the eval split; the test split was looked at afterwards. Another recipe
# is tried with TRAIN="--num-train-epochs 3 ..." and PREPARE="--augment 0 ..." in the environment. Without
# --line-loss-weight it made results/standin_no_lines_* and, run before, standin_earlier_*; without noisy copies besides,
# results/standin_not_augmented_*. TRAININGS=3 NAME=standin_averaged, with "split", averaged three trainings a seed.
# SEEDS="0 1" makes only these. results/tiny_* are those of "data/tiny-qwen2 ... split so_far" with SEEDS=0 NAME=tiny
# PREPARE="--augment 0" and TRAIN="--num-train-epochs 2 --learning-rate 3e-3 --line-loss-weight 0.3
# --per-device-train-batch-size 16 --eval-steps 600 --save-steps 600", on a CPU in an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1 dialogs=$2 eval0819=$3 output=$4
parts=${*:5}
read -ra prepare <<<"${PREPARE:---augment 0.5}"
read -ra train <<<"${TRAIN:---num-train-epochs 2 --learning-rate 1e-3 --line-loss-weight 0.3}"
trainings=${TRAININGS:-1} name=${NAME:-standin}
gpus=$( (nvidia-smi -L 2>/dev/null || true) | wc -l)  # several share the seeds

# all PID ...: waits for them, and ends the script where one failed
all() { for pid in "$@"; do wait "$pid"; done; }

# train SEED DATA RUN
train() {
    python3 trainer.py --model "$model" --train "$2/train.jsonl" --eval "$2/eval.jsonl" --output "$3" --seed "$1" \
        --tokens-per-pass 8192 --compile-layers false --per-device-train-batch-size 64 --per-device-eval-batch-size 128 \
        --eval-steps 196 --save-steps 196 "${train[@]}"
}

# train_seed SEED NAME OPTIONS: data-NAME, prepared with the OPTIONS besides, and run-NAME, calibrated
train_seed() {
    local seed=$1 data=$output/data-$2 run=$output/run-$2 runs=() jobs=()
    if ((gpus > 1)); then export CUDA_VISIBLE_DEVICES=$((seed % gpus)); fi
    python3 -m data.prepare --source "$dialogs" --output "$data" --seed "$seed" "${prepare[@]}" "${@:3}"
    if ((trainings == 1)); then
        train "$seed" "$data" "$run"
    else
        for ((i = 0; i < trainings; i++)); do
            runs+=("$run-$i")
            train $((seed + 1000 * i)) "$data" "$run-$i" &
            jobs+=($!)
        done
        all "${jobs[@]}"
        python3 average.py --checkpoints "${runs[@]}" --output "$run"
    fi
    python3 evaluate.py --model "$model" --checkpoint "$run" --data "$data/eval.jsonl" --calibrate --cost-ratio 1
}

# judge NAME DATA REPORT
judge() { python3 evaluate.py --model "$model" --checkpoint "$output/run-$1" --data "$2" --output "$output/$3.json"; }

# labelled SEED SUFFIX LABELS [NAME KIND]: a run, its data labelled by that rule, and its reports
labelled() {
    local run=${4:-}$1 kind=${5:-}
    train_seed "$1" "$run" --labels "$3"
    judge "$run" "$output/data-$run/test.jsonl" "${name}${kind}_split_by_case$2" & jobs=($!)
    judge "$run" "$eval0819" "${name}${kind}_eval0819$2" & jobs+=($!)
    python3 label_audit.py --data "$eval0819" --source "$dialogs" --labels "$3" \
        --train "$output/data-$run/train.jsonl" --output "$output/label_audit_eval0819$kind$2.json" & jobs+=($!)
    all "${jobs[@]}"
}

split() { labelled "$1" "$2" lines; }

so_far() { labelled "$1" "$2" so-far so-far- _so_far; }

apart() {
    train_seed "$1" "apart-$1" --held-out "$eval0819" --shares 0.85 0.1 0.05
    judge "apart-$1" "$eval0819" "${name}_eval0819_apart$2" & jobs=($!)
    judge "apart-$1" "$output/eval0819_relabelled.jsonl" "${name}_eval0819_relabelled_apart$2" & jobs+=($!)
    all "${jobs[@]}"
}

early() {
    local data=$output/data-0 run=$output/run-0
    cp "$data/leakage.json" "$output/standin_leakage.json"
    head -n 400 "$data/test.jsonl" >"$data/test400.jsonl"
    python3 evaluate.py --model "$model" --checkpoint "$run" --data "$data/test400.jsonl" --method generate \
        --output "$output/${name}_generate.json" & jobs=($!)
    python3 early_warning.py --model "$model" --checkpoint "$run" --source "$dialogs" --eval "$data/eval.jsonl" \
        --test "$data/test.jsonl" --output "$output/early_warning.json" & jobs+=($!)
    all "${jobs[@]}"
}

mkdir -p "$output"
python3 label_audit.py --data "$eval0819" --source "$dialogs" --relabelled "$output/eval0819_relabelled.jsonl"
seeds=()
for part in split apart so_far; do
    if [[ " ${parts:-split apart so_far} " == *" $part "* ]]; then
        for seed in ${SEEDS:-0 1 2}; do
            suffix=_seed$seed
            $part "$seed" "${suffix#_seed0}" & seeds+=($!)
        done
    fi
done
all ${seeds[@]+"${seeds[@]}"}  # of which there may be none
if [[ " ${parts:-early} " == *" early "* ]]; then early; fi
