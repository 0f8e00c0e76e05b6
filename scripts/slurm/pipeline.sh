#!/bin/bash
# The three stages as three jobs, each waiting for the one before to end well:
#
#   scripts/slurm/pipeline.sh [options of sbatch] -- [options of restorevar fit]
#   scripts/slurm/pipeline.sh --nodes=4 --partition=long -- --data.root ~/datasets
#
# A job that is queued again has not ended, so the next one goes on waiting; if one fails, those after it are dropped.
set -euo pipefail
cd "$(dirname "$0")/../.."
for_sbatch=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
    for_sbatch+=("$1")
    shift
done
[ $# -gt 0 ] && shift

previous=
for stage in 1 2 3; do
    wait_for=()
    [ -n "$previous" ] && wait_for=(--dependency="afterok:$previous" --kill-on-invalid-dep=yes)
    previous=$(sbatch --parsable --job-name="restorevar-$stage" "${wait_for[@]}" "${for_sbatch[@]}" \
        scripts/slurm/stage.sbatch "$stage" "$@")
    previous=${previous%%;*}   # with federations: "job;cluster"
    echo "stage $stage: job $previous"
done
