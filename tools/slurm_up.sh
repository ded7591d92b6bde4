#!/usr/bin/env bash
# A SLURM cluster of one node, for tests: no systemd, no cgroups, no database, all files in one
# folder, on loopback only. To be run as root.
#
#   slurm_up.sh run COMMAND...  bring it up, run the command, and stop it, whatever happens
#   slurm_up.sh stop            end what a killed run has left
#
# While it is up, /etc/slurm/{slurm,gres,cgroup}.conf are links to its files: $SLURM_CONF alone is not
# enough, because Snakemake's jobs drop it before they call srun. A configuration that is already
# there is never touched.
#
# Debian packages: munge slurm-wlm (apt-get install --no-install-recommends)
# Environment: SLURM_LAB_DIR, SLURM_LAB_CPUS, SLURM_LAB_MEM_MB, SLURM_LAB_GPUS (pretend devices,
# 0 to 5), SLURM_LAB_CTLD_PORT, SLURM_LAB_NODE_PORT.
set -euo pipefail

dir=${SLURM_LAB_DIR:-/tmp/invarlock-slurm}
cpus=${SLURM_LAB_CPUS:-$(nproc)}
mem=${SLURM_LAB_MEM_MB:-$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)}
gpus=${SLURM_LAB_GPUS:-2}
# A pretend GPU needs a character device: with a plain file the node is refused, with a bare count
# CUDA_VISIBLE_DEVICES is not set. These are there in every container.
gpu_devices=(/dev/null /dev/zero /dev/full /dev/random /dev/urandom)
ctld_port=${SLURM_LAB_CTLD_PORT:-16817}
node_port=${SLURM_LAB_NODE_PORT:-16818}
host=$(hostname -s)
me=$(id -un)
export SLURM_CONF=$dir/etc/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

die() { echo "slurm_up: $*" >&2; exit 1; }

write_conf() {
    rm -rf -- "${dir:?}"/{log,state,spool} # no job of an earlier cluster is known
    mkdir -p "$dir"/{etc,run,log,state,spool}
    chmod 755 "$dir" "$dir"/{etc,run,log,state,spool}
    if [[ ! -s $dir/etc/munge.key ]]; then
        (umask 077; head -c 1024 /dev/urandom > "$dir/etc/munge.key")
    fi
    {
        echo "ClusterName=lab"
        echo "SlurmctldHost=$host(127.0.0.1)"
        echo "SlurmctldPort=$ctld_port"
        echo "SlurmdPort=$node_port"
        # listen on the address above, not on all
        echo "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny"
        echo "SlurmUser=$me"
        echo "SlurmdUser=$me"
        echo "AuthType=auth/munge"
        echo "AuthInfo=socket=$dir/run/munge.sock"
        echo "CryptoType=crypto/munge"
        echo "StateSaveLocation=$dir/state"
        echo "SlurmdSpoolDir=$dir/spool"
        echo "SlurmctldPidFile=$dir/run/slurmctld.pid"
        echo "SlurmdPidFile=$dir/run/slurmd.pid"
        echo "SlurmctldLogFile=$dir/log/slurmctld.log"
        echo "SlurmdLogFile=$dir/log/slurmd.log"
        echo "SlurmdParameters=config_overrides" # CPUs and memory as written here
        echo "ProctrackType=proctrack/linuxproc"
        echo "TaskPlugin=task/none"
        echo "JobAcctGatherType=jobacct_gather/none"
        # no database: clients have to ask squeue, where finished jobs stay for MinJobAge seconds
        echo "AccountingStorageType=accounting_storage/none"
        echo "JobCompType=jobcomp/none"
        echo "MinJobAge=3600"
        echo "MpiDefault=none"
        echo "ReturnToService=2"
        echo "SwitchType=switch/none"
        echo "SchedulerType=sched/backfill"
        echo "SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0"
        echo "SelectType=select/cons_tres"
        echo "SelectTypeParameters=CR_Core_Memory"
        echo "InactiveLimit=0"
        echo "KillWait=5"
        echo "Waittime=0"
        echo "SlurmctldTimeout=60"
        echo "SlurmdTimeout=60"
        local gres=""
        if (( gpus > 0 )); then
            echo "GresTypes=gpu"
            gres=" Gres=gpu:$gpus"
        fi
        echo "NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$mem$gres State=UNKNOWN"
        echo "PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP"
    } > "$SLURM_CONF"
    printf 'CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainDevices=no\nConstrainRAMSpace=no\n' \
        > "$dir/etc/cgroup.conf"
    rm -f "$dir/etc/gres.conf"
    if (( gpus > 0 )); then
        local i
        for (( i = 0; i < gpus; i++ )); do
            echo "NodeName=$host Name=gpu File=${gpu_devices[$i]}"
        done > "$dir/etc/gres.conf"
    fi
}

link_conf() {
    local f target
    mkdir -p /etc/slurm
    for f in slurm.conf gres.conf cgroup.conf; do
        target=/etc/slurm/$f
        if [[ -e $target || -L $target ]] && [[ $(readlink "$target") != "$dir/etc/$f" ]]; then
            die "$target is there already: it is not replaced"
        fi
        if [[ -e $dir/etc/$f ]]; then ln -sfn "$dir/etc/$f" "$target"; fi
    done
}

unlink_conf() {
    local f
    for f in slurm.conf gres.conf cgroup.conf; do
        if [[ $(readlink "/etc/slurm/$f" || true) == "$dir/etc/$f" ]]; then rm "/etc/slurm/$f"; fi
    done
}

wait_for() { # SECONDS WHAT COMMAND...
    local n=$1 what=$2; shift 2
    local i
    for (( i = 0; i < n * 5; i++ )); do
        if "$@" > /dev/null 2>&1; then return 0; fi
        sleep 0.2
    done
    tail -n 20 "$dir"/log/*.log >&2 || true
    die "$what did not come up in $n s"
}

node_idle() { sinfo -h -n "$host" -o %T | grep -qE '^(idle|mixed|allocated)$'; }

up() {
    local tool
    for tool in munged slurmctld slurmd sbatch; do
        command -v "$tool" > /dev/null || die "$tool is missing: install munge and slurm-wlm"
    done
    [[ $(id -u) == 0 ]] || die "only root can start it"
    (( gpus <= ${#gpu_devices[@]} )) || die "at most ${#gpu_devices[@]} pretend GPUs"
    down # what a killed run has left
    write_conf
    trap down EXIT
    link_conf
    munged --key-file="$dir/etc/munge.key" --socket="$dir/run/munge.sock" \
        --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" \
        --seed-file="$dir/run/munged.seed" 9>&-
    wait_for 10 munged munge -S "$dir/run/munge.sock" -n
    slurmctld -f "$SLURM_CONF" 9>&-
    wait_for 20 slurmctld scontrol ping
    slurmd -f "$SLURM_CONF" -N "$host" 9>&-
    wait_for 30 "slurmd (node $host)" node_idle
}

is() { # PID DAEMON: whether that is still running (Debian's binary is called slurmctld-wlm)
    [[ $(readlink "/proc/$1/exe") == */"$2"?(-wlm) ]]
}

alive() { # DAEMON: its pid, if it is running
    local pid
    [[ -s $dir/run/$1.pid ]] || return 1
    pid=$(< "$dir/run/$1.pid")
    is "$pid" "$1" && echo "$pid"
}

stop_one() { # DAEMON
    local pid i
    pid=$(alive "$1") || return 0
    kill "$pid" 2> /dev/null || true
    for (( i = 0; i < 100; i++ )); do
        is "$pid" "$1" || return 0
        sleep 0.2
    done
    kill -KILL "$pid" 2> /dev/null || true
}

down() {
    local i
    if alive slurmctld > /dev/null; then
        scancel --quiet --user="$me" 2> /dev/null || true
        for (( i = 0; i < 50; i++ )); do # no job outlives the cluster
            [[ $(squeue -h -t running,completing -o %i 2> /dev/null) ]] || break
            sleep 0.2
        done
    fi
    stop_one slurmd
    stop_one slurmctld
    stop_one munged
    unlink_conf
}

mkdir -p "$dir"
case ${1:-} in
    run)
        shift
        exec 9> "$dir/lock" # one at a time
        flock 9
        up
        code=0
        "$@" 9>&- || code=$?
        exit "$code"
        ;;
    stop) down ;;
    *) die "run COMMAND, or stop?" ;;
esac
