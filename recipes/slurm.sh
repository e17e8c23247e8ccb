#!/usr/bin/env bash
# A run on several machines under SLURM: submit it once, and it goes on until it is finished.
#
#   sbatch slurm.sh RECIPE FOLDER [further arguments of llm2enc convert]
#
# FOLDER must be on a file system that all machines share, and so must the recipe, the data and the environment.
# Ten minutes before the time is up, and when the job is preempted, all processes write a checkpoint behind the same step;
# the job is then queued again and goes on from there, bit for bit. So does one that lost a machine.
#
#SBATCH --job-name=llm2enc
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1          # one torchrun on each machine, which starts a process for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600          # to this script, 600 seconds before the end
#SBATCH --requeue
#SBATCH --open-mode=append           # one log for all parts of the run
#SBATCH --output=llm2enc-%j.log

set -uo pipefail
recipe=${1:?recipe} folder=${2:?folder}
shift 2

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Minutes until a process that gives no sign of life, or a collective, is given up. A death is noticed at once.
export LLM2ENC_TIMEOUT=${LLM2ENC_TIMEOUT:-30}
# A step and a checkpoint must fit into this many seconds after SIGTERM. A torchrun whose --help has no
# --shutdown-timeout waits 30 seconds, whatever is set here.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
# If machines have several networks, name the one that joins them:
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# --resume starts a new run in an empty folder and goes on with the one that is there.
# is_host: torchrun would guess from the machine's name, which may lead to another of its addresses.
srun --kill-on-bad-exit=1 bash -c 'exec torchrun --rdzv-conf "is_host=$((SLURM_NODEID == 0))" "$@"' torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv-backend c10d \
  --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 20000))" \
  -m llm2enc convert "$recipe" -o "$folder" --resume "$@" &
step=$!

asked=
trap 'asked=yes; kill -TERM "$step"' TERM
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do # the signal has ended the waiting, not the step
  wait "$step"
  code=$?
done

if [ -n "$asked" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
