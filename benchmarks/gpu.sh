#!/bin/sh
# The benchmark on a GPU, in under ten minutes a run, without a network. Results go to benchmarks/results/.
#   sh benchmarks/gpu.sh [MODEL]          MODEL: a model folder, default the paper's size with random weights
set -eu
cd "$(dirname "$0")/.."
model=${1:-paper}
peers='[plain,diffusion]'
[ "$model" = paper ] || peers='[diffusion]'  # plain reads the published kind of model only
place=benchmarks/results/$(date +%F)-$(python -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
python -m restorevar benchmark --model "$model" --device cuda --precision both --batch '[4,16]' \
    --peer "$peers" --size '[512x512,1920x1080,3840x2160]' --output "$place"
python -m pytest -q -m gpu tests/models
