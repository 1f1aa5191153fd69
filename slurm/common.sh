# Sourced by the job scripts of all three schedulers.
# shellcheck shell=bash disable=SC2034

readonly requeue_status=75 # dropcycle's "I stopped on request after a commit: run me again"

# train_with CONFIG: the array `trainer` is the command that trains, on GPUs where the CUDA build is there, else on the
# CPU. What follows it (--set device.backend=...) has the last word.
train_with() {
  if [[ -x build/cuda/dropcycle ]]; then trainer=(build/cuda/dropcycle train "$1" --set device.backend=cuda)
  else trainer=(build/cpu/dropcycle train "$1")
  fi
  echo "${trainer[0]} trains" >&2
}

# The index from 0 of this element of a job array, under Slurm, PBS or Grid Engine; SWEEP_INDEX overrides it.
sweep_index() {
  if [[ -n ${SWEEP_INDEX:-} ]]; then echo "$SWEEP_INDEX"
  elif [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then echo "$SLURM_ARRAY_TASK_ID"
  elif [[ -n ${PBS_ARRAY_INDEX:-} ]]; then echo "$PBS_ARRAY_INDEX"
  elif [[ ${SGE_TASK_ID:-undefined} != undefined ]]; then echo $((SGE_TASK_ID - 1))
  else
    echo "sweep_index: no job array: submit as one, or set SWEEP_INDEX" >&2
    return 1
  fi
}

# run_preemptible COMMAND...: runs it, hands USR1 and TERM on as USR1 (commit a checkpoint and stop), returns its status.
run_preemptible() {
  local child code status=1 signalled
  "$@" &
  child=$!
  trap 'signalled=1; kill -USR1 "$child" 2> /dev/null || true' USR1 TERM
  while true; do
    signalled=0
    code=0
    wait "$child" || code=$? # a signal ends the wait, not the child: wait again
    ((code == 127)) || status=$code
    if ((!signalled || code == 127)); then break; fi
  done
  trap - USR1 TERM
  return "$status"
}
