#!/bin/bash
# Trains on 2 full nodes of 4 GPUs under Altair Grid Engine (TSUBAME 4), one rank per GPU:
#   qsub -g GROUP slurm/age/train.sh configs/experiment/NAME.toml [--set key=value]...
# Five minutes before the limit the trainer commits a checkpoint; status 99 puts the job back into the queue.
#$ -cwd
#$ -l node_f=2
#$ -l h_rt=24:00:00
#$ -r y
#$ -j y
#$ -N dropcycle
set -euo pipefail
source slurm/common.sh
config=${1:?usage: qsub -g GROUP slurm/age/train.sh CONFIG [--set key=value]...}
shift
ranks_per_node=4
nodes=$(wc -l < "$PE_HOSTFILE")
export OMP_NUM_THREADS=8
stop_after=$((24 * 3600 - 300))

status=0
train_with "$config"
run_preemptible timeout --preserve-status --signal=USR1 "$stop_after" \
  mpirun -n $((nodes * ranks_per_node)) --map-by "ppr:$ranks_per_node:node" "${trainer[@]}" \
  --resume auto "$@" || status=$?
((status == requeue_status)) && exit 99
exit "$status"
