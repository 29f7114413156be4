#!/usr/bin/env bash
# Every published report, from dialogues on: for each seed, which deals the dialogues and begins the training, data is
# prepared, a model trained, probabilities and threshold found on eval, and test judged.
#
#   benchmarks/reports.sh MODEL DIALOGS EVAL0819.jsonl "ORDINARY ..." OUT [PART ...]        # default: all parts
#
# ORDINARY are folders or CSV files of non-fraud dialogues from elsewhere, to train on and to judge by. The threshold is
# that of the best F1 on eval with at most FALSE_ALARMS in a hundred of the ordinary calls that are kept for choosing it.
#
#   held_out  the test split by dialogue, and eval0819            -> held_out, eval0819, and scams_unseen for SCAMS
#   calls     held_out's model, calls read whole, a threshold of their own -> held_out_calls
#   early     held_out's model, how early in a call it warns      -> early_warning
#   apart     trained without the dialogues eval0819 was cut from -> eval0819_apart
#   onset     for eval0819 alone: its own labels (from the onset of a fraud on), the corpus and nothing else, for as
#             long as the article trains, whatever eval says      -> eval0819_onset
#   article   the article's recipe, speaker names kept, segments shuffled before the split, generated answers
#             -> article_split (its own test), article_eval0819
#
# Reports go to RESULTS/SET/NAME/seed-N.json (RESULTS=results/reports, NAME=the model's folder). What is there is not
# made again: a script that was stopped goes on. Several GPUs share the seeds. In the environment, with their defaults:
# SEEDS="0 1 2", PYTHON=python3, TRAIN and PREPARE (below), TRAININGS=1 (more are averaged to one adapter),
# ORDINARY_EVAL="" and ORDINARY_JUDGE="" (ordinary talk to choose the threshold on only, and to judge on only),
# CALIBRATE="--best-f1" (the target), FALSE_ALARMS=5, SCAMS="" (records of kinds of scam that the corpus lacks),
# ENCODER="" (an encoder to fine-tune as a peer),
# ONSET="--num-train-epochs 3 --learning-rate 2e-4 --line-loss-weight 0.3 --eval-strategy no --save-strategy no",
# ARTICLE="--keep-speaker-names --num-train-epochs 1 --eval-steps 370 --save-steps 370" (the rest of the article's recipe
# is what trainer.py does by default),
# GPUS (how many share the seeds; default: all), ONLY=prepare (makes all data, without a GPU, and stops) or train (stops
# before anything is judged).
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1 dialogs=$2 eval0819=$3 out=$5
read -ra ordinary <<<"$4"
parts=" ${*:6} "
[[ $parts == "  " ]] && parts=" held_out calls early apart onset article "
python=${PYTHON:-python3} results=${RESULTS:-results/reports} name=${NAME:-$(basename "$model")}
trainings=${TRAININGS:-1} encoder=${ENCODER:-}
read -ra prepare <<<"${PREPARE:---augment 0.5 --ordinary-share all}"
read -ra train <<<"${TRAIN:---max-steps 1400 --learning-rate 2e-4 --line-loss-weight 0.3 --eval-steps 350 --save-steps 350}"
read -ra onset <<<"${ONSET:---num-train-epochs 3 --learning-rate 2e-4 --line-loss-weight 0.3 --eval-strategy no --save-strategy no}"
read -ra article <<<"${ARTICLE:---keep-speaker-names --num-train-epochs 1 --eval-steps 370 --save-steps 370}"
read -ra chosen_on <<<"${ORDINARY_EVAL:-}"
read -ra judged_only <<<"${ORDINARY_JUDGE:-}"
read -ra target <<<"${CALIBRATE:---best-f1}"
gpus=${GPUS:-$( (nvidia-smi -L 2>/dev/null || true) | wc -l)}

# data_of NAME SEED OPTIONS: data-NAME-SEED, with ordinary talk in train and apart from it
data_of() {
    local data=$out/data-$1-$2 options=(--ordinary "${ordinary[@]}")
    if ((${#chosen_on[@]})); then options+=(--ordinary-eval "${chosen_on[@]}"); fi
    if ((${#judged_only[@]})); then options+=(--ordinary-judge "${judged_only[@]}"); fi
    [[ -e $data/leakage.json ]] ||
        "$python" -m data.prepare --source "$dialogs" --output "$data" --seed "$2" "${prepare[@]}" "${options[@]}" "${@:3}"
}

# train DATA RUN SEED OPTIONS
train() {
    [[ -e $2.done ]] && return
    "$python" trainer.py --model "$model" --train "$1/train.jsonl" --eval "$1/eval.jsonl" --output "$2" --resume \
        --seed "$3" "${@:4}"
    touch "$2.done"
}

# model_of NAME SEED [OPTIONS]: run-NAME-SEED, trained on data-NAME-SEED and calibrated on its eval split
model_of() {
    local data=$out/data-$1-$2 run=$out/run-$1-$2 runs=() recipe=("${@:3}")
    [[ -e $run.calibrated.json ]] && return
    if ((${#recipe[@]} == 0)); then recipe=("${train[@]}"); fi
    if ((trainings == 1)); then
        train "$data" "$run" "$2" "${recipe[@]}"
    else
        for ((i = 0; i < trainings; i++)); do
            runs+=("$run-$i")
            train "$data" "$run-$i" $(($2 + 1000 * i)) "${recipe[@]}"
        done
        [[ -e $run ]] || "$python" -m antifraud.training.average --checkpoints "${runs[@]}" --output "$run"
    fi
    calibrate "$run" "$data/eval.jsonl" "$data/ordinary_eval.jsonl" --output "$run.calibrated.json"
}

# calibrate RUN EVAL ORDINARY OPTIONS: finds its threshold, with a bound on the alarms in ORDINARY where there is such
calibrate() {
    local bound=()
    if [[ -e $3 ]]; then bound=(--ordinary "$3" --false-alarms "${FALSE_ALARMS:-5}"); fi
    "$python" evaluate.py --model "$model" --checkpoint "$1" --data "$2" --calibrate "${target[@]}" "${bound[@]}" \
        "${@:4}"
}

# judge RUN DATA SET SEED OPTIONS: RESULTS/SET/NAME/seed-SEED.json
judge() {
    local report=$results/$3/$name/seed-$4.json
    [[ -e $report ]] ||
        "$python" evaluate.py --model "$model" --checkpoint "$1" --data "$2" --output "$report" "${@:5}"
}

# full RUN-NAME DATA SET SEED OPTIONS: the whole report, beside the encoder that was trained on the same split
full() {
    local data=$out/data-$1-$4
    local options=(--full --train "$data/train.jsonl" --eval "$data/eval.jsonl" "${@:5}")
    if [[ -e $data/ordinary_eval.jsonl ]]; then options+=(--ordinary-eval "$data/ordinary_eval.jsonl"); fi
    if [[ $encoder ]]; then options+=(--peer "encoder=$out/encoder-$1-$4"); fi
    judge "$out/run-$1-$4" "$2" "$3" "$4" "${options[@]}"
}

# peer_of NAME SEED: encoder-NAME-SEED, trained on data-NAME-SEED
peer_of() {
    local data=$out/data-$1-$2
    [[ $encoder && ! -e $out/encoder-$1-$2/encoder.json ]] || return 0
    rm -rf "$out/encoder-$1-$2"
    "$python" -m antifraud.evaluation.encoder --model "$encoder" --train "$data/train.jsonl" --eval "$data/eval.jsonl" \
        --seed "$2" --output "$out/encoder-$1-$2"
}

held_out() {
    data_of held_out "$1"
    [[ ${ONLY:-} == prepare ]] && return
    model_of held_out "$1"
    [[ ${ONLY:-} == train ]] && return
    peer_of held_out "$1"
    full held_out "$out/data-held_out-$1/test.jsonl" held_out "$1" --ordinary "$out/data-held_out-$1/ordinary.jsonl"
    full held_out "$eval0819" eval0819 "$1"
    if [[ ${SCAMS:-} ]]; then judge "$out/run-held_out-$1" "$SCAMS" scams_unseen "$1"; fi
    for part in calls early; do
        if [[ $parts == *" $part "* ]]; then "$part" "$1"; fi
    done
}

calls() {
    local data=$out/data-held_out-$1 run=$out/run-held_out_calls-$1 talk=()
    [[ ${ONLY:-} ]] && return
    data_of held_out "$1"
    model_of held_out "$1"
    peer_of held_out "$1"
    if [[ $encoder ]]; then talk+=(--peer "encoder=$out/encoder-held_out-$1"); fi
    if [[ -e $data/ordinary_eval_calls.jsonl ]]; then
        talk+=(--ordinary "$data/ordinary_calls.jsonl" --ordinary-eval "$data/ordinary_eval_calls.jsonl")
    fi
    if [[ ! -e $run ]]; then
        rm -rf "$run.copying"
        cp -r "$out/run-held_out-$1" "$run.copying"
        calibrate "$run.copying" "$data/eval_calls.jsonl" "$data/ordinary_eval_calls.jsonl"
        mv "$run.copying" "$run"
    fi
    judge "$run" "$data/test_calls.jsonl" held_out_calls "$1" --full --train "$data/train.jsonl" \
        --eval "$data/eval_calls.jsonl" "${talk[@]}"
}

early() {
    [[ ${ONLY:-} ]] && return
    local data=$out/data-held_out-$1 report=$results/early_warning/$name/seed-$1.json talk=()
    data_of held_out "$1"
    model_of held_out "$1"
    if [[ -e $data/ordinary_eval_calls.jsonl ]]; then
        talk=(--ordinary "$data/ordinary_calls.jsonl" --ordinary-eval "$data/ordinary_eval_calls.jsonl")
    fi
    if [[ $encoder ]]; then talk+=(--peer "encoder=$out/encoder-held_out-$1"); fi
    peer_of held_out "$1"
    [[ -e $report ]] ||
        "$python" -m antifraud.evaluation.early_warning --model "$model" --checkpoint "$out/run-held_out-$1" \
            --source "$dialogs" --eval "$data/eval.jsonl" --test "$data/test.jsonl" --train "$data/train.jsonl" \
            "${talk[@]}" --output "$report"
}

apart() {
    data_of apart "$1" --held-out "$eval0819" --shares 0.85 0.1 0.05
    [[ ${ONLY:-} == prepare ]] && return
    model_of apart "$1"
    [[ ${ONLY:-} == train ]] && return
    peer_of apart "$1"
    full apart "$eval0819" eval0819_apart "$1"
}

onset() {
    local data=$out/data-onset-$1
    [[ -e $data/leakage.json ]] ||
        "$python" -m data.prepare --source "$dialogs" --output "$data" --seed "$1" --labels from-onset
    [[ ${ONLY:-} == prepare ]] && return
    model_of onset "$1" "${onset[@]}"
    [[ ${ONLY:-} == train ]] && return
    peer_of onset "$1"
    full onset "$eval0819" eval0819_onset "$1"
}

# shuffled DATA SEED: segments labelled from the onset of a fraud, as many of either label, shuffled, then split
shuffled() {
    "$python" - "$dialogs" "$1" "$2" <<'PYTHON'
import random
import sys
from pathlib import Path

from data.records import Skipped, read_dialogues, write_records
from data.segments import cut_dialogue
from data.split import rebalance

source, output, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
segments = [record for dialogue in read_dialogues(source, Skipped())
            for record in cut_dialogue(dialogue, labels="from-onset")]
segments = rebalance(segments, seed=seed)
random.Random(seed).shuffle(segments)
tenth = len(segments) // 10
for split, rows in ("train", segments[2 * tenth:]), ("eval", segments[:tenth]), ("test", segments[tenth:2 * tenth]):
    write_records(output / f"{split}.jsonl", rows)
PYTHON
}

article() {
    local data=$out/data-article-$1 run=$out/run-article-$1
    [[ -e $data/test.jsonl ]] || shuffled "$data" "$1"
    [[ ${ONLY:-} == prepare ]] && return
    train "$data" "$run" "$1" "${article[@]}"
    [[ ${ONLY:-} == train ]] && return
    judge "$run" "$data/test.jsonl" article_split "$1" --method generate
    judge "$run" "$eval0819" article_eval0819 "$1" --method generate
}

# worker N: every job whose turn it is, one after the other, on the Nth GPU
worker() {
    if ((gpus > 1)); then export CUDA_VISIBLE_DEVICES=$1; fi
    for ((job = $1; job < ${#jobs[@]}; job += gpus > 1 ? gpus : 1)); do ${jobs[job]}; done
}

mkdir -p "$out"
jobs=() workers=()
for part in held_out calls early apart onset article; do
    if [[ $part == @(calls|early) && $parts == *" held_out "* ]]; then continue; fi  # follows on its model
    if [[ $parts == *" $part "* ]]; then
        for seed in ${SEEDS:-0 1 2}; do jobs+=("$part $seed"); done
    fi
done
for ((gpu = 0; gpu < (gpus > 1 ? gpus : 1); gpu++)); do worker $gpu & workers+=($!); done
for pid in "${workers[@]}"; do wait "$pid"; done  # and stops where one failed
