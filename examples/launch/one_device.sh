#!/bin/sh
# One GPU, or a CPU.  usage: one_device.sh RECIPE [KEY=VALUE ...]
exec allmem distill "$@"
