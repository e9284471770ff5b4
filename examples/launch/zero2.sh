#!/bin/sh
# Optimiser states and gradients are sharded over the GPUs (DeepSpeed ZeRO-2, as in the paper).
# Needs `pip install "allmem[deepspeed]"`.
#   PROCESSES=8 zero2.sh RECIPE [KEY=VALUE ...]
here="$(dirname "$0")"
exec "$here/ddp.sh" "$@" training.deepspeed="$here/zero2.json"
