#!/usr/bin/env bash
# Tests rambo.slurm on a real Slurm: controller, node and munge on this machine, in a temporary folder. Debian or Ubuntu, root:
#
#   apt-get install -y slurm-wlm munge && benchmark/test_slurm.sh
#
# An array job of four tasks on the bundled Pendulum log: one runs through, one gets the signal of a time limit, one is
# killed and put back, one has nothing to do. All must end finished, the disturbed ones from their checkpoints.
set -Eeuo pipefail
cd "$(dirname "$0")/.."
for tool in slurmctld slurmd munged sbatch python; do
  command -v $tool >/dev/null || { echo "$tool is missing: apt-get install -y slurm-wlm munge" >&2; exit 1; }
done

folder=$(mktemp -d)
chmod 755 "$folder"
daemons=()
end() {
  trap - ERR
  scancel --full --signal=KILL --user=root 2>/dev/null || true
  sleep 2
  kill "${daemons[@]}" 2>/dev/null || true
  wait
  cd /
  rm -rf "$folder"
}
trap end EXIT
fail() {
  echo "FAILED: $*" >&2
  squeue --array >&2 || true
  tail -n 15 "$folder"/slurm*.log "$folder"/repository/slurm-*.out >&2 || true
  tail -c 500 "$folder"/repository/runs/logs/*.log >&2 || true
  exit 1
}
trap 'fail "line $LINENO"' ERR

# --- Slurm ------------------------------------------------------------------------------------------------------------
host=$(hostname -s)
mkdir -m 700 "$folder"/{state,spool} && mkdir "$folder/munge"
head -c 128 /dev/urandom >"$folder/munge.key" && chmod 400 "$folder/munge.key"
cat >"$folder/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=5
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=4000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES State=UP
EOF
export SLURM_CONF=$folder/slurm.conf
munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
  --seed-file="$folder/munge/seed" 2>"$folder/munged.log" &
daemons+=($!)
slurmctld -D >"$folder/slurmctld.log" 2>&1 &
daemons+=($!)
slurmd -D >"$folder/slurmd.log" 2>&1 &
daemons+=($!)
for _ in {1..60}; do
  sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
  sleep 1
done
sinfo --noheader --format=%T | grep -q idle || fail "no idle node"
slurmctld -V

# --- the array job ----------------------------------------------------------------------------------------------------
mkdir "$folder/repository"
cp -r rambo_continuous.py benchmark "$folder/repository"
cd "$folder/repository"
iterations=60
export DATASETS=pendulum-mini SEEDS="1 2 3" OMP_NUM_THREADS=1
job=$(sbatch --parsable --array=0-3 --cpus-per-task=1 --mem=1G benchmark/rambo.slurm benchmark/rambo_continuous.sh \
  --total-iterations $iterations --updates-per-iteration 20 --rollout-batch-size 100 --model-max-pretrain-epochs 1 \
  --model-hidden-dim 32 --eval-episodes 2 --checkpoint-interval 1)
echo "Submitted array job $job"

evaluations() { cat runs/pendulum-mini__rambo_continuous__"$1"__*/evaluations.csv 2>/dev/null | wc -l; } # of a seed
in_the_middle() { [ "$(evaluations "$1")" -gt 5 ]; }
wait_for() { # seconds, a command that succeeds when it is so
  for ((second = 0; second < $1; second++)); do
    "${@:2}" && return
    sleep 1
  done
  fail "not within $1 s: ${*:2}"
}
queue() { squeue --noheader --array --format=%T --jobs="$1" 2>/dev/null; } # the state of a task
pending() { queue "$1" | grep -q PENDING; }
gone() { ! queue "$1" | grep -qE "RUNNING|COMPLETING|PENDING"; }

wait_for 300 in_the_middle 2
timeout 3 scancel --batch --signal=USR1 "${job}_1" || true # it tries again for a minute when the job is put back so soon
echo "Task 1: got the signal of the time limit after $(evaluations 2) evaluations"
wait_for 60 pending "${job}_1"
wait_for 300 in_the_middle 3
scancel --signal=KILL --full "${job}_2"
echo "Task 2: killed after $(evaluations 3) evaluations"
wait_for 60 gone "${job}_2"
scontrol requeue "${job}_2"
for task in 1 2; do
  wait_for 60 scontrol update JobId="${job}_$task" StartTime=now # a task that was put back waits for two minutes: not here
done
wait_for 400 gone "$job"

# --- what must be there -----------------------------------------------------------------------------------------------
grep -q "nothing to run" slurm-"${job}_3".out || fail "task 3 should have found nothing to do"
for task in 0 1 2; do
  folders=(runs/pendulum-mini__rambo_continuous__$((task + 1))__*)
  ((${#folders[@]} == 1)) || fail "seed $((task + 1)) has ${#folders[@]} run folders"
  grep -q '"status": "finished"' "${folders[0]}/result.json" || fail "${folders[0]} is not finished"
  diff <(cut -d, -f1 "${folders[0]}/evaluations.csv") <(echo iteration && seq 0 $iterations) ||
    fail "${folders[0]}: an iteration is missing or there twice"
  resumed=$(grep -c -- "started: .*--resume" slurm-"${job}_$task".out || true)
  ((resumed == (task > 0))) || fail "task $task was resumed $resumed times"
  echo "Task $task: finished, $iterations iterations, resumed $resumed times: ${folders[0]}"
done
echo "PASSED"
