#!/usr/bin/env bash
# Every script parses, and the job scripts do what the schedulers need, with stand-ins for mpirun and the schedulers.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "jobs_test: $*" >&2; exit 1; }

mapfile -t scripts < <(cd "$repository" && grep -rlE '^#!.*\b(bash|sh)$' tools slurm .ci tests/tools)
((${#scripts[@]} >= 9)) || fail "only these scripts were found: ${scripts[*]}"
for script in "${scripts[@]}" slurm/common.sh; do
  bash -n "$repository/$script" || fail "$script doesn't parse"
done
for script in tools/setup tools/test tools/corpus .ci/run; do
  [[ -x $repository/$script ]] || fail "$script isn't executable"
done

# A copy of the job scripts with a trainer that tells how it was called and ends with $STATUS.
mkdir -p "$work/bin" "$work/build/cpu" "$work/configs"
cp -r "$repository/slurm" "$work"
cat > "$work/bin/mpirun" <<'FAKE'
#!/bin/bash
echo "mpirun $*" >> "$CALLS"
[[ ${WAIT_FOR_SIGNAL:-0} == 0 ]] && exit "${STATUS:-0}"
trap 'exit 75' USR1
touch "$CALLS.ready"
for ((i = 0; i < 200; i++)); do sleep 0.05; done
exit 1
FAKE
for program in scontrol qsub dropcycle; do
  # shellcheck disable=SC2016  # expanded when it runs
  printf '#!/bin/bash\necho "%s $*" >> "$CALLS"\n' "$program" > "$work/bin/$program"
done
chmod +x "$work"/bin/*
mv "$work/bin/dropcycle" "$work/build/cpu/dropcycle"
printf 'a 4\na 4\nb 4\nb 4\n' > "$work/nodes"
export CALLS=$work/calls PATH=$work/bin:$PATH

# run expected_status environment... -- script arguments...: leaves what was called in $calls.
run() {
  local expected=$1 status=0 environment=()
  shift
  while [[ $1 != -- ]]; do environment+=("$1"); shift; done
  shift
  : > "$CALLS"
  (cd "$work" && exec env "${environment[@]}" bash "$@") > "$work/log" 2>&1 || status=$?
  calls=$(cat "$CALLS")
  [[ $status == "$expected" ]] || fail "$1 ended with $status, not $expected: $(cat "$work/log")"
}
expect() { [[ $calls == *"$1"* ]] || fail "expected '$1' in: $calls"; }
refuse() { [[ $calls != *"$1"* ]] || fail "didn't expect '$1' in: $calls"; }

slurm=(SLURM_SUBMIT_DIR="$work" SLURM_NTASKS=8 SLURM_CPUS_PER_TASK=4 SLURM_JOB_ID=17)
run 0 "${slurm[@]}" STATUS=0 -- slurm/train.sbatch configs/a.toml --set train.steps=3
expect "mpirun -n 8 build/cpu/dropcycle train configs/a.toml --resume auto --set train.steps=3"
refuse scontrol
run 0 "${slurm[@]}" STATUS=75 -- slurm/train.sbatch configs/a.toml
expect "scontrol requeue 17"
run 3 "${slurm[@]}" STATUS=3 -- slurm/train.sbatch configs/a.toml
refuse scontrol

# The signal before the time limit reaches the trainer, and its status comes back.
: > "$CALLS"
rm -f "$CALLS.ready"
(cd "$work" && exec env "${slurm[@]}" WAIT_FOR_SIGNAL=1 bash slurm/train.sbatch configs/a.toml) &
job=$!
for ((i = 0; i < 200; i++)); do [[ -e $CALLS.ready ]] && break; sleep 0.05; done
kill -USR1 "$job"
wait "$job" || fail "status $? after the signal"
calls=$(cat "$CALLS")
expect "scontrol requeue 17"

pbs=(PBS_O_WORKDIR="$work" PBS_NODEFILE="$work/nodes" CONFIG=configs/a.toml)
run 0 "${pbs[@]}" PBS_ARRAY_INDEX=1 -- slurm/pbs/ablation.pbs
expect "mpirun -n 4 --hostfile $work/nodes build/cpu/dropcycle train configs/a.toml"
expect "init.ratio=0.25"
refuse qsub
run 0 "${pbs[@]}" PBS_ARRAY_INDEX=1 STATUS=75 -- slurm/pbs/ablation.pbs
expect "qsub -v CONFIG=configs/a.toml,SWEEP_INDEX=1 slurm/pbs/ablation.pbs"
run 0 "${pbs[@]}" SWEEP_INDEX=4 -- slurm/pbs/ablation.pbs
expect "init.ratio=1 "
run 1 "${pbs[@]}" -- slurm/pbs/ablation.pbs # not a job array

mkdir "$work/build/cuda" # the CUDA build is taken where it is there
cp "$work/build/cpu/dropcycle" "$work/build/cuda/dropcycle"
run 0 "${slurm[@]}" STATUS=0 -- slurm/train.sbatch configs/a.toml --set train.steps=3
expect "build/cuda/dropcycle train configs/a.toml --set device.backend=cuda --resume auto --set train.steps=3"
run 0 "${pbs[@]}" PBS_ARRAY_INDEX=1 -- slurm/pbs/ablation.pbs
expect "build/cuda/dropcycle train configs/a.toml --set device.backend=cuda --set init.method=drop"
rm -r "$work/build/cuda"

printf 'a 4 q\nb 4 q\n' > "$work/nodes"
run 0 PE_HOSTFILE="$work/nodes" -- slurm/age/train.sh configs/a.toml
expect "mpirun -n 8 --map-by ppr:4:node build/cpu/dropcycle train configs/a.toml --resume auto"
run 99 PE_HOSTFILE="$work/nodes" STATUS=75 -- slurm/age/train.sh configs/a.toml

run 0 "${slurm[@]}" SLURM_ARRAY_TASK_ID=1 -- slurm/preprocess.sbatch corpus tokenizer.model shards
for split in train valid test; do
  expect "dropcycle preprocess --tokenizer tokenizer.model --workers 4 --output shards/ja.$split corpus/ja/$split.jsonl"
done

source "$work/slurm/common.sh"
[[ $(SLURM_ARRAY_TASK_ID=3 sweep_index) == 3 && $(PBS_ARRAY_INDEX=2 sweep_index) == 2 ]] || fail "sweep_index"
[[ $(SGE_TASK_ID=1 sweep_index) == 0 && $(SGE_TASK_ID=5 SWEEP_INDEX=0 sweep_index) == 0 ]] || fail "sweep_index"
