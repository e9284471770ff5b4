#!/bin/sh
# Every GPU of this machine has the whole model and its own rows (DDP).
#   PROCESSES=8 ddp.sh RECIPE [KEY=VALUE ...]
# On several machines, the same command on each of them with
#   NODES=4 HOST=<name of the first machine> ddp.sh RECIPE ...
exec torchrun --nproc-per-node "${PROCESSES:-gpu}" --nnodes "${NODES:-1}" \
    --rdzv-backend c10d --rdzv-endpoint "${HOST:-localhost}:${PORT:-29500}" \
    -m allmem distill "$@"
