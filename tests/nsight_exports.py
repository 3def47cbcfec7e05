"""SQLite exports as NVIDIA documents Nsight Systems to write them, for tests.

Made from the documented schema (User Guide, "SQLite Schema Reference") and NOT VERIFIED against a file that Nsight
Systems wrote: none is at hand that may be shared.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

BASE_NS = 1_750_000_000_000_000_000
PID, TID, OTHER_TID = 4321, 4321, 4400
GPU_UUID = "5a1d0c3e-0000-4000-8000-000000000001"


def global_tid(pid: int, tid: int) -> int:
    """Serialised: hardware and VM id above, 24 bits of process, 24 bits of thread."""
    return 0x01 << 48 | pid << 24 | tid


NAMES = {
    1: "void gemm<float, (int)128>(float *, float *)", 2: "gemm", 3: "cudaLaunchKernel_v7000", 4: "cuLaunchKernel",
    5: "cudaStreamSynchronize_v3020", 6: "pthread_cond_wait", 7: "forward", 8: "cudaMemcpyAsync_v3020",
}  # fmt: skip

_COMMON = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE META_DATA_EXPORT (name TEXT NOT NULL, value TEXT);
CREATE TABLE TARGET_INFO_SESSION_START_TIME (utcEpochNs INTEGER, utcTime TEXT, localTime TEXT);
CREATE TABLE TARGET_INFO_GPU (vmId INTEGER NOT NULL, id INTEGER NOT NULL, name TEXT, busLocation TEXT, uuid TEXT);
CREATE TABLE TARGET_INFO_SYSTEM_ENV (globalVid INTEGER, devStateName TEXT, name TEXT, nameEnum TEXT, value TEXT);
CREATE TABLE ENUM_NSYS_EVENT_TYPE (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
CREATE TABLE SCHED_EVENTS (start INTEGER NOT NULL, cpu INTEGER NOT NULL, isSchedIn INTEGER NOT NULL,
  globalTid INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
  contextId INTEGER NOT NULL, {green} streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
  demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER, registersPerThread INTEGER NOT NULL,
  gridX INTEGER NOT NULL, gridY INTEGER NOT NULL, gridZ INTEGER NOT NULL, blockX INTEGER NOT NULL,
  blockY INTEGER NOT NULL, blockZ INTEGER NOT NULL, staticSharedMemory INTEGER NOT NULL,
  dynamicSharedMemory INTEGER NOT NULL, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
  contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
  bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL, srcKind INTEGER, dstKind INTEGER, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
  contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
  value INTEGER NOT NULL, bytes INTEGER NOT NULL, graphNodeId INTEGER, memKind INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_SYNCHRONIZATION (start INTEGER NOT NULL, end INTEGER NOT NULL,
  deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER,
  globalPid INTEGER, syncType INTEGER NOT NULL, eventId INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL,
  globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, callchainId INTEGER);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER,
  category INTEGER, color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, {text_id} domainId INTEGER);
CREATE TABLE OSRT_API (start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL, globalTid INTEGER,
  correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, nestingLevel INTEGER,
  callchainId INTEGER NOT NULL);
"""

LATER = "CREATE TABLE PROCESSES (globalPid INTEGER, pid INTEGER, name TEXT);"


def export(path: Path, schema: str = "3.11.2") -> Path:
    """One kernel launch with its driver call inside, copies, a memset, synchronisations, ranges and OS calls."""
    later = schema.startswith("3")
    db = sqlite3.connect(path)
    db.executescript(
        _COMMON.format(green="greenContextId INTEGER," if later else "", text_id="textId INTEGER," if later else "")
        + (LATER if later else "")
    )
    me, other = global_tid(PID, TID), global_tid(PID, OTHER_TID)
    owner = global_tid(PID, 0)

    def add(table: str, **row: object) -> None:
        names, marks = ", ".join(f'"{k}"' for k in row), ", ".join("?" * len(row))
        db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))  # noqa: S608 - ours

    for id, value in NAMES.items():
        add("StringIds", id=id, value=value)
    add("META_DATA_EXPORT", name="EXPORT_SCHEMA_VERSION", value=schema)
    add("META_DATA_EXPORT", name="EXPORT_PRODUCT_VERSION", value="2024.2.1" if later else "2022.4.1")
    add("TARGET_INFO_SESSION_START_TIME", utcEpochNs=BASE_NS)
    add("TARGET_INFO_GPU", vmId=0, id=0, name="NVIDIA H100", uuid=GPU_UUID)
    add("TARGET_INFO_SYSTEM_ENV", name="Hostname", value="node7")
    if later:
        add("PROCESSES", globalPid=owner, pid=PID, name="python3")
    for at, cpu, came, who in ((5, 0, 1, me), (9_000, 0, 0, me), (9_400, 2, 1, me), (9_500, 1, 0, other)):
        add("SCHED_EVENTS", start=at, cpu=cpu, isSchedIn=came, globalTid=who)
    gpu = {"deviceId": 0, "contextId": 1, "globalPid": owner}
    add("CUPTI_ACTIVITY_KIND_KERNEL", start=1_000, end=9_000, streamId=7, correlationId=11, demangledName=1,
        shortName=2, registersPerThread=32, gridX=8, gridY=2, gridZ=1, blockX=128, blockY=1, blockZ=1,
        staticSharedMemory=512, dynamicSharedMemory=1_024, **gpu)  # fmt: skip
    add("CUPTI_ACTIVITY_KIND_MEMCPY", start=9_100, end=9_900, streamId=7, correlationId=12, bytes=1 << 20, copyKind=1,
        srcKind=1, dstKind=3, **gpu)  # fmt: skip
    add("CUPTI_ACTIVITY_KIND_MEMCPY", start=10_000, end=10_100, streamId=9, correlationId=13, bytes=64, copyKind=2,
        srcKind=3, dstKind=2, **gpu)  # fmt: skip
    add("CUPTI_ACTIVITY_KIND_MEMSET", start=10_200, end=10_300, streamId=7, correlationId=0, value=0, bytes=4_096,
        **gpu)  # fmt: skip
    add("CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", start=500, end=9_950, streamId=7, correlationId=14, syncType=3,
        eventId=0, **gpu)  # fmt: skip
    add("CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", start=600, end=700, streamId=0xFFFF_FFFF, correlationId=15, syncType=4,
        eventId=0, **gpu)  # fmt: skip
    calls = ((100, 400, 3, 11), (150, 350, 4, 11), (500, 9_960, 5, 14), (9_970, 9_980, 8, 12))
    for start, end, name, correlation in calls:
        add("CUPTI_ACTIVITY_KIND_RUNTIME", start=start, end=end, eventClass=0, globalTid=me, correlationId=correlation,
            nameId=name, returnValue=0)  # fmt: skip
    add("OSRT_API", start=200, end=300, eventClass=27, globalTid=other, nameId=6, returnValue=0, callchainId=0)
    nvtx = {"globalTid": me, "category": 0, "domainId": 0}
    if later:
        add("NVTX_EVENTS", start=50, end=20_000, eventType=59, textId=7, **nvtx)
    else:
        add("NVTX_EVENTS", start=50, end=20_000, eventType=59, text="forward", **nvtx)
    add("NVTX_EVENTS", start=60, end=None, eventType=60, text="epoch", **{**nvtx, "domainId": 3})
    add("NVTX_EVENTS", start=70, end=None, eventType=34, text="checkpoint", **nvtx)
    add("NVTX_EVENTS", start=0, end=None, eventType=75, text="a domain", **nvtx)
    db.commit()
    db.close()
    return path
