#!/bin/bash
# The three stages as three jobs, each waiting for the one before to end well:
#
#   scripts/slurm/pipeline.sh [options of sbatch] -- [options of restorevar fit]
#   scripts/slurm/pipeline.sh --nodes=2 --partition=long -- --data.batch_size 1 --data.root ~/datasets \
#       --transformer.model.initial_weights var_d16.pth
#
# Options with a stage's name in front go to that stage, as those of `restorevar pipeline` do. GPUs x data.batch_size
# must divide every stage's total_batch (16, 48 and 48). A job that is queued again has not ended, so the next one goes
# on waiting; if one fails, those after it are dropped.
set -euo pipefail
cd "$(dirname "$0")/../.."
for_sbatch=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
    for_sbatch+=("$1")
    shift
done
[ $# -gt 0 ] && shift

names=(tokenizer transformer refiner)
previous=
for stage in 1 2 3; do
    for_fit=()
    mine=true
    for word in "$@"; do
        if [[ $word =~ ^--(tokenizer|transformer|refiner)\.(.*)$ ]]; then
            mine=false
            if [ "${BASH_REMATCH[1]}" = "${names[stage - 1]}" ]; then mine=true; fi
            word=--${BASH_REMATCH[2]}
        elif [[ $word == --* ]]; then
            mine=true
        fi   # a word without dashes belongs to the option before it
        if $mine; then for_fit+=("$word"); fi
    done
    wait_for=()
    [ -n "$previous" ] && wait_for=(--dependency="afterok:$previous" --kill-on-invalid-dep=yes)
    previous=$(sbatch --parsable --job-name="restorevar-$stage" "${wait_for[@]}" "${for_sbatch[@]}" \
        scripts/slurm/stage.sbatch "$stage" "${for_fit[@]}")
    previous=${previous%%;*}   # with federations: "job;cluster"
    echo "stage $stage: job $previous"
done
