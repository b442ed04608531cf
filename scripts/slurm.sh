#!/usr/bin/env bash
# A SLURM of one node with accounting, for tests of the cluster launcher: sudo bash scripts/slurm.sh FOLDER (its state and logs)
# Needs the Debian packages slurm-wlm munge slurmdbd mariadb-server, no systemd. Stop it: bash scripts/slurm.sh FOLDER stop
set -euo pipefail
folder=$(realpath -m "${1:?name a folder}")
host=$(hostname -s)

wait_for() { # until the command succeeds, for a minute
    for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
    echo "slurm.sh: gave up waiting for: $*; logs are in $folder/log" >&2
    exit 1
}

if [ "${2:-}" = stop ]; then
    for name in slurmd slurmctld slurmdbd mariadbd; do
        pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    done
    exit 0
fi

mkdir -p "$folder"/{state,spool,log,sql} /etc/slurm
chmod 755 "$folder"
if ! pgrep -x munged >/dev/null; then
    mkdir -p /run/munge
    chown munge: /run/munge
    chmod 755 /run/munge
    runuser -u munge -- /usr/sbin/munged
fi
wait_for bash -c 'munge -n | unmunge'

socket=$folder/sql/socket
chown mysql: "$folder/sql"
[ -d "$folder/sql/mysql" ] || mariadb-install-db --user=mysql --datadir="$folder/sql" --skip-test-db \
    --auth-root-authentication-method=normal >"$folder/log/install-db.log" 2>&1 ||
    { cat "$folder/log/install-db.log" >&2; echo "slurm.sh: the user mysql has to be able to enter $folder" >&2; exit 1; }
mariadbd --no-defaults --user=mysql --datadir="$folder/sql" --socket="$socket" --skip-networking \
    --pid-file="$folder/sql/mariadbd.pid" --innodb-buffer-pool-size=64M >"$folder/log/mariadbd.log" 2>&1 &
echo $! >"$folder/mariadbd.pid"
wait_for mariadb --socket="$socket" --execute "create database if not exists slurm_acct_db"

cat >/etc/slurm/slurmdbd.conf <<END
DbdHost=localhost
DbdAddr=127.0.0.1
SlurmUser=root
AuthType=auth/munge
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
END
chmod 600 /etc/slurm/slurmdbd.conf
MYSQL_UNIX_PORT=$socket slurmdbd
wait_for bash -c 'exec 3<>/dev/tcp/127.0.0.1/6819'

cat >/etc/slurm/slurm.conf <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoreFlags=job_comment
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 $(slurmd -C | head -1 | cut -d' ' -f2-) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=60 State=UP PriorityTier=1
# Its jobs put those of the other partition back into the queue.
PartitionName=urgent Nodes=$host MaxTime=60 State=UP PriorityTier=2 PreemptMode=OFF
END
wait_for sacctmgr --noheader show cluster
sacctmgr --immediate add cluster test >/dev/null 2>&1 || true # it may be there
slurmctld
slurmd
wait_for bash -c 'sinfo --noheader --format %T | grep -q idle'
sinfo
