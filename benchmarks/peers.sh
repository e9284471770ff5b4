#!/usr/bin/env bash
# An environment with the layers of others beside allmem, for `python -m benchmarks.peers` and
# `python -m benchmarks.gpu`: titans-pytorch, flash-linear-attention and, where CUDA's compiler is,
# mamba-ssm, which is built from source.
#
#   benchmarks/peers.sh [folder]          default: .venv-peers
#
#   PYTHON=python3.12        the interpreter that makes it
#   PIP_TORCH_INDEX=<url>    one more package index to look for torch in, for example
#                            https://download.pytorch.org/whl/cpu (no CUDA libraries)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-.venv-peers}
install=("$folder/bin/python" -m pip install --disable-pip-version-check)
if [[ -n ${PIP_TORCH_INDEX:-} ]]; then
    install+=(--extra-index-url "$PIP_TORCH_INDEX")
fi

"${PYTHON:-python3}" -m venv "$folder"
"${install[@]}" -e ".[demo]" "titans-pytorch>=0.5.5" "flash-linear-attention>=0.4"
if command -v nvcc >/dev/null; then
    # Builds against the torch that was just installed; without it the rest still runs.
    "${install[@]}" setuptools wheel ninja
    "${install[@]}" --no-build-isolation causal-conv1d mamba-ssm ||
        echo "mamba-ssm could not be built: its rows will say so" >&2
fi
echo "made $folder: $folder/bin/python -m benchmarks.peers"
