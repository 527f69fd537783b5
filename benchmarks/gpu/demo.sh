#!/usr/bin/env bash
# The demo on a GPU: a cache of Python's documentation by SmolLM2-135M, and a student of six blocks that learns from it.
# Usage: benchmarks/gpu/demo.sh FOLDER
set -euo pipefail
out=${1:?usage: benchmarks/gpu/demo.sh FOLDER}
mkdir -p "$out"
python3 tools/make_demo_corpus.py "$out/corpus"
build=(python3 -m teacher_cache build configs/demo.yaml --rows.seq_len 256 --compute.batch_size 64 --compute.rows_per_shard 128)
"${build[@]}" --corpus.source "$out/corpus/train.parquet" --rows.count 1024 --out "$out/cache"
"${build[@]}" --corpus.source "$out/corpus/heldout.parquet" --rows.count 64 --out "$out/heldout"
python3 -m student --cache "$out/cache" --evaluation.cache "$out/heldout" --out "$out/student" --training.precision bf16 \
    --model.blocks 6 --model.heads 12 --training.micro_batch_size 32 --training.gradient_accumulation 1 --training.epochs 20
cp "$out/student/evaluation.jsonl" "$out/student/metrics.jsonl" "$out/.."
