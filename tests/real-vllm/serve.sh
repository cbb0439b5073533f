#!/usr/bin/env bash
# Serves one vLLM replica on the CPU, with KV events, until it is ended or its standard input closes.
#
# The real-vllm check starts it. By hand:
#   sleep inf | setsid tests/real-vllm/serve.sh ~/.cache/warmpath/real-vllm/venv-0.32.0 ~/.cache/warmpath/real-vllm/model \
#     8001 ipc:///tmp/events ipc:///tmp/replay 32 256 10000
#
# Run it as the leader of a process group of its own: when it goes, the group goes with it.
set -euo pipefail

if (($# < 8)); then
  echo "usage: serve.sh VENV MODEL PORT EVENTS REPLAY BLOCK_SIZE BLOCKS BUFFER_STEPS [MORE VLLM OPTIONS]" >&2
  exit 2
fi
venv=$1 model=$2 port=$3 events=$4 replay=$5 block_size=$6 blocks=$7 buffer_steps=$8
shift 8

# vLLM's engine runs in a child of the API server. Whoever started this script holds the other end of its standard
# input: when that closes, for whatever reason, nobody needs the replica any more.
leader=$$
(cat >/dev/null || true; kill -KILL -- "-$leader") <&0 &

# vLLM binds events to all of the machine's addresses (tcp://*:PORT) or to none (ipc://PATH): a TCP address of one
# interface it would take for a subscriber's, and connect to.
kv_events=$(printf '{"enable_kv_cache_events": true, "publisher": "zmq", "topic": "kv@127.0.0.1:%d@tiny",
  "endpoint": "%s", "replay_endpoint": "%s", "buffer_steps": %d}' "$port" "$events" "$replay" "$buffer_steps")

# One thread each: two replicas share this machine with Envoy, the indexer and the check itself.
export VLLM_TARGET_DEVICE=cpu OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1
# Nothing leaves this machine.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1

exec "$venv/bin/vllm" serve "$model" --served-model-name tiny --host 127.0.0.1 --port "$port" \
  --dtype bfloat16 --enforce-eager --max-model-len 4096 --max-num-seqs 16 \
  --block-size "$block_size" --num-gpu-blocks-override "$blocks" \
  --enable-prefix-caching --enable-prompt-tokens-details --kv-events-config "$kv_events" \
  "$@" </dev/null
