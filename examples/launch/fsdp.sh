#!/bin/sh
# The layers are sharded over the GPUs (FSDP2), for models that one GPU cannot hold.
#   PROCESSES=8 fsdp.sh RECIPE [KEY=VALUE ...]
exec "$(dirname "$0")/ddp.sh" "$@" training.fsdp=true
