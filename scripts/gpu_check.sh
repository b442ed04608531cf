#!/usr/bin/env bash
# What only a GPU can show, within nine minutes on a machine that has torch, torchvision and timm but no network; gpu_pack.sh fills the
# folder that it needs. Each part has a time limit and says at once in $OUT (default outputs/gpu_check) what it found, the most valuable
# first; one that fails or lacks something stops no other. With names of parts (of parts.txt; all need `machine`), these alone.
# GPU_CHECK_SECONDS=530: for all.
# GPU_CHECK_SMALL=1: small networks, for rehearsals.
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
all=$((${GPU_CHECK_SECONDS:-530} * slower)) # no part goes on for longer
only=" $* "

wanted() { [[ $only != *[![:space:]]* || $only == *" $1 "* ]]; }

part() { # NAME SECONDS FILE COMMAND...: SIGTERM at the limit, as from a scheduler
    local name=$1 limit=$(($2 * slower)) file=$3 began=$SECONDS code=0
    wanted "$name" || return
    shift 3
    [ "$limit" -le $((all - SECONDS)) ] || limit=$((all - SECONDS))
    if [ "$limit" -le 0 ]; then
        echo "$name: left out, $all s are over" | tee -a "$out/parts.txt"
        return
    fi
    timeout --kill-after=10 "$limit" "$@" >"$work/$name.log" 2>&1 || code=$?
    { echo "== $name: $*" && cat "$work/$name.log"; } >>"$out/$file"
    echo "$name: exit code $code after $((SECONDS - began)) s (limit $limit s; details in $file)" | tee -a "$out/parts.txt"
}

summarise() { $python -m vld.commands.benchmark.gpu_summary "$work" "$out" || echo "no summary yet"; }

machine() {
    $python -m pip install --quiet --no-index --no-deps --find-links "$pack/wheels" --target "$work/site" "$pack"/wheels/*.whl &
    # Batch norm is frozen as with ImageNet's weights, whose values change no time.
    for network in $large $other efficientnet_lite0; do
        $python -c 'import sys, timm, torch, torchvision
name = sys.argv[2]
network = timm.create_model("tf_efficientnet_lite0") if name == "efficientnet_lite0" else getattr(torchvision.models, name)()
torch.save(network.state_dict(), f"{sys.argv[1]}/{name}.pth")' "$work" "$network" &
    done
    $python -c 'import platform, torch, torchvision, timm; print(platform.python_version(), torch.__version__, torchvision.__version__, timm.__version__)'
    nvidia-smi
    wait
}

until_line() { # PATTERN COMMAND...: SIGTERM once it has said a line like this
    local pattern=$1 log process
    shift
    log=$(mktemp -p "$work")
    "$@" > >(tee "$log") 2>&1 &
    process=$!
    until grep -q "$pattern" "$log" || ! kill -0 $process 2>/dev/null; do sleep 0.2; done
    kill -TERM $process
    wait $process
}

if [ "${GPU_CHECK_SMALL:-}" ]; then
    size=(image_size=32 dataset.store_size=32 batch_size=4)
    steps=4 few=2 run=6 large=resnet18 other=mobilenet_v2 kind=filter small=32 compile=false without_graphs=false
else
    size=(image_size=224)
    steps=75 few=30 run=300 large=resnet50 other=vit_b_16 kind=point small=96 compile=auto without_graphs=true
fi
every=$((run / 3))
export PYTHONPATH=$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 COLUMNS=150
export TORCHINDUCTOR_CACHE_DIR=$work/compiled # what one part has compiled the next one finds
export -f machine until_line
export python pack work large other
common=(dataset=pacs dataset.verify=warn data_dir="$pack/data" test_domain=sketch device=cuda wandb.mode=disabled)
on() { echo "backbone=$1 backbone.weights=$work/$1.pth"; }
# shellcheck disable=SC2046
main=($(on $large) "${size[@]}" compile=$compile backbone.feature_scale=0.004)
# shellcheck disable=SC2046
transformer=($(on $other) "${size[@]}" compile=$compile mixout=0.9 mixout_kind=$kind)
# shellcheck disable=SC2046
tiny=($(on efficientnet_lite0) image_size=$small dataset.store_size=$small compile=$compile)
eager=(compile=false deterministic=true batch_size=4) # beside others in the GPU's memory

compiled() { # NAME OPTION...: as a training does it, which takes a core for a minute and a half
    local name=$1
    shift
    part "compile_$name" 170 compiling.txt $python scripts/train.py "${common[@]}" "$@" optim.steps=1 eval_every=1 output_dir="$work/$name"
}

benchmark() { # NAME SECONDS WHAT OPTION...: what it has measured by then is in its file
    local name=$1 limit=$2 what=$3
    wanted "$name" || return
    shift 3
    part "$name" "$limit" benchmarks.txt $python -m vld.commands.benchmark.variant "$what" "${common[@]}" "$@" output_dir="$work/benchmark/$name"
    summarise
}

training=($python scripts/train.py "${common[@]}" "${main[@]}" optim.steps=$run eval_every=$every averaging.start=$every ensemble.start=$every
    ensemble.every=$every swad.enabled=true mixout=0.9 "optim.milestones=[$((run / 2))]")
interrupted() { # NAME SECONDS OPTION...
    local name=$1 limit=$2
    shift 2
    part "${name}interrupted" "$limit" training.txt bash -c 'until_line "$@"' until_line " step $every/" "${training[@]}" "$@" output_dir="$work/${name}second"
    part "${name}resumed" "$limit" training.txt "${training[@]}" "$@" output_dir="$work/${name}second"
}

part machine 60 machine.txt bash -c machine
# All that is not timed, at once.
tests=($python -m pytest -q -p no:cacheprovider -p no:logging)
export TORCHINDUCTOR_COMPILE_THREADS=4
compiled main "${main[@]}" &
compiled mixout "${main[@]}" mixout=0.9 &
compiled fp32 "${main[@]}" precision=fp32 &
compiled $other "${transformer[@]}" &
compiled ${other}_plain "${transformer[@]}" mixout=0 &
compiled small_images "${tiny[@]}" &
part tests 170 tests.txt "${tests[@]}" tests/training/test_gpu.py -k "not bf16" &
part bf16 170 tests.txt "${tests[@]}" tests/training/test_gpu.py -k bf16 &
part commands 170 tests.txt "${tests[@]}" tests/null_gpu/every_command.py -k "not benchmark" &
part deterministic_first 120 training.txt "${training[@]}" "${eager[@]}" output_dir="$work/deterministic_first" &
interrupted deterministic_ 120 "${eager[@]}" &
wait
summarise

benchmark main 150 all "${main[@]}" optim.steps=$steps
benchmark small_images "$variant" steps "${tiny[@]}" optim.steps=$few
benchmark $other "$variant" steps "${transformer[@]}" optim.steps=$few
benchmark without_graphs "$variant" steps "${main[@]}" compile=$without_graphs optim.steps=$few
interrupted "" 60
benchmark eager "$variant" steps "${main[@]}" compile=false mixout=0.9 optim.steps=$few
benchmark fp32 "$variant" steps "${main[@]}" precision=fp32 optim.steps=$few
benchmark cudnn_untried "$variant" untried "${main[@]}" optim.steps=$few
cat "$out/summary.txt"
for name in "$@"; do
    grep -q "^$name: " "$out/parts.txt" || { echo "$name: no such part" >&2 && exit 2; }
done
