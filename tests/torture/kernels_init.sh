#!/bin/sh
# The first process of a kernel under test: mounts what a host has, runs kernels_guest.py, which hands its results to
# the second disk as a tar archive, and ends the machine.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 NO_COLOR=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts /dev/shm /results
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "+cpu +memory +io" >/sys/fs/cgroup/cgroup.subtree_control
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
ip link set lo up
ulimit -l unlimited
cd /src || exit 1
PYTHONPATH=/src /opt/audit/bin/python -m tests.torture.kernels_guest /results "$(cat /proc/cmdline)" >/dev/ttyS0 2>&1
sync
echo o >/proc/sysrq-trigger
sleep 60
