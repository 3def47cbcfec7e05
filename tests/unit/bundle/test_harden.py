"""What a process does to itself before it holds keys or decodes bytes of unknown origin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[3])


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ROOT}, capture_output=True, text=True)  # noqa: PLW1510
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_process_with_keys_is_not_dumpable_and_leaves_no_core() -> None:
    out = run("""
import ctypes, resource
from gpuaudit.bundle.harden import harden_process
done = harden_process()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE), done.not_dumpable, done.no_core)
locked = int([l for l in open('/proc/self/status') if l.startswith('VmLck')][0].split()[1])
print(done.memory_locked == (locked > 0))
""")
    assert out == "0 (0, 0) True True\nTrue\n"


def test_decoder_cannot_write_a_file_or_take_all_memory() -> None:
    out = run("""
import signal, tempfile
from gpuaudit.bundle.harden import limit_decoder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
f = tempfile.TemporaryFile()
limit_decoder(1 << 30, 60)
try:
    f.write(b'x' * 100); f.flush()
except OSError as e:
    print('no file')
try:
    bytearray(2 << 30)
except MemoryError:
    print('no memory')
print([l.split()[1] for l in open('/proc/self/status') if l.startswith('NoNewPrivs')][0])
import os; os._exit(0) if not __import__('sys').stdout.flush() else None
""")
    assert out == "no file\nno memory\n1\n"
