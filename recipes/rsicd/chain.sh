#!/usr/bin/env bash
# The RSICD experiment for one seed: base -> SFT -> SCST, and SFT -> more SFT as the control; each evaluated on val.
#
#   bash recipes/rsicd/chain.sh SEED        (about 45 minutes of one core; finished parts are passed over)
#
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-.venv/bin/python}"
seed="$1"
out="outputs/rsicd/$seed"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
mkdir -p "$out"

train() { # name script flags...
    local name="$1" script="$2"
    shift 2
    [ -f "$out/$name/run.json" ] ||
        "$python" "launch/$script.py" "$@" --seed "$seed" --output_dir "$out/$name" --resume true > "$out/$name.log" 2>&1
}
evaluate() { # name flags...
    local name="$1"
    shift
    [ -f "$out/$name/metrics.json" ] ||
        "$python" launch/evaluate.py --config recipes/rsicd/evaluate.yaml "$@" --output_dir "$out/$name" > "$out/$name-evaluation.log" 2>&1
}

train sft sft --config recipes/rsicd/sft.yaml
train scst scst --config recipes/rsicd/scst.yaml --adapter "$out/sft"
train control sft --config recipes/rsicd/sft-control.yaml --adapter "$out/sft"
for name in sft scst control; do evaluate "$name" --adapter "$out/$name"; done
evaluate base
