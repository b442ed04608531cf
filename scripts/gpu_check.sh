#!/usr/bin/env bash
# What only a GPU can show, within nine minutes on a machine that has torch, torchvision and timm but no network; gpu_pack.sh fills the
# folder that it needs. Each part has a time limit and says at once in $OUT (default outputs/gpu_check) what it found, the most valuable
# first; one that fails or lacks something stops no other. GPU_CHECK_SMALL=1: small networks, for rehearsals.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pack=$PWD/data/gpu_check
out=$(realpath -m "${OUT:-outputs/gpu_check}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
python=${PYTHON:-python3}
variant=${GPU_CHECK_VARIANT:-40} # seconds for each
slower=${GPU_CHECK_SLOWER:-1} # times all limits, for rehearsals on a slow machine
all=$((530 * slower)) # no part goes on for longer

part() { # NAME SECONDS FILE COMMAND...: SIGINT at the limit, which commands of ours take as Ctrl-C
    local name=$1 limit=$(($2 * slower)) file=$3 began=$SECONDS code=0
    shift 3
    [ "$limit" -le $((all - SECONDS)) ] || limit=$((all - SECONDS))
    if [ "$limit" -le 0 ]; then
        echo "$name: left out, $all s are over" | tee -a "$out/parts.txt"
        return
    fi
    echo "== $name: $*" >>"$out/$file"
    timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$out/$file" 2>&1 || code=$?
    echo "$name: exit code $code after $((SECONDS - began)) s (limit $limit s; details in $file)" | tee -a "$out/parts.txt"
    $python -m vld.commands.benchmark.gpu_summary "$work" "$out" || echo "no summary yet"
}

machine() {
    $python -m pip install --quiet --no-index --no-deps --find-links "$pack/wheels" --target "$work/site" "$pack"/wheels/*.whl
    $python -c 'import platform, torch, torchvision, timm; print(platform.python_version(), torch.__version__, torchvision.__version__, timm.__version__)'
    # Batch norm is frozen as with ImageNet's weights, whose values change no time.
    $python -c 'import sys, timm, torch, torchvision
for name in sys.argv[2:]:
    network = timm.create_model("tf_efficientnet_lite0") if name == "efficientnet_lite0" else getattr(torchvision.models, name)()
    torch.save(network.state_dict(), f"{sys.argv[1]}/{name}.pth")' "$work" $large $other efficientnet_lite0
    nvidia-smi
}

if [ "${GPU_CHECK_SMALL:-}" ]; then
    size=(image_size=32 dataset.store_size=32 batch_size=4 compile=false)
    steps=4 few=2 run=6 every=2 interrupted=20 large=resnet18 other=mobilenet_v2 mixout=filter small=32
else
    size=(image_size=224)
    steps=150 few=30 run=600 every=150 interrupted=35 large=resnet50 other=vit_b_16 mixout=point small=96
fi
export PYTHONPATH=$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 COLUMNS=150
export -f machine
export python pack work large other
common=(dataset=pacs dataset.verify=warn data_dir="$pack/data" test_domain=sketch device=cuda wandb.mode=disabled)
on() { echo "backbone=$1 backbone.weights=$work/$1.pth"; }

benchmark() { # NAME SECONDS PROGRAM OPTION...: what it has measured by then is in its file
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" benchmarks.txt $python "$@" "${common[@]}" output_dir="$work/benchmark/$name"
}

variant() { # NAME NETWORK tried|first OPTION...: the steps alone
    local name=$1 network=$2 algorithms=$3
    shift 3
    # shellcheck disable=SC2046
    benchmark "$name" $variant -m vld.commands.benchmark.variant "$algorithms" $(on $network) "${size[@]}" optim.steps=$few "$@"
}

part machine 60 machine.txt bash -c machine
part tests 90 tests.txt $python -m pytest -q -p no:cacheprovider tests/training/test_gpu.py
# shellcheck disable=SC2046
benchmark main 170 scripts/benchmark.py $(on $large) "${size[@]}" optim.steps=$steps
variant eager $large tried compile=false
variant graphs $large tried compile=graphs
variant fp32 $large tried precision=fp32

training=($python scripts/train.py "${common[@]}" $(on $large) "${size[@]}" optim.steps=$run eval_every=$every averaging.start=$every ensemble.start=$every
    "optim.milestones=[$((run / 2))]")
part interrupted $interrupted training.txt "${training[@]}" output_dir="$work/interrupted"
part resumed 60 training.txt "${training[@]}" output_dir="$work/interrupted"
for time in first second; do
    part "deterministic_$time" 40 training.txt "${training[@]}" "optim.steps=$((run / 6 + 1))" "optim.milestones=[1]" \
        eval_every=$((run / 6 + 1)) deterministic=true output_dir="$work/deterministic_$time"
done

variant $other $other tried mixout_kind=$mixout
variant small_images efficientnet_lite0 tried image_size=$small dataset.store_size=$small
variant small_images_in_graphs efficientnet_lite0 tried image_size=$small dataset.store_size=$small compile=graphs
variant cudnn_untried $large first
variant 160_images $large tried batch_size=53
cat "$out/summary.txt"
