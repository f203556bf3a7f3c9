#!/usr/bin/python3
"""Measures what ferry promises: the pause that a checkpointed program itself sees.

    bench/bench.py [--bin build/release/bin] [--runs 7] [--small]

The instrument is bench/gap.c: a program that owns memory, ticks every 50 microseconds and reports its
longest gap between two ticks.  Every figure is the median of several runs.  Large cases are compared with
a limit taken between the runs, on the same machine in the same minute:
L = writing 1 GiB into a new file on tmpfs, plus first-touching 1 GiB of new anonymous memory.
Needs root, a C compiler and a tmpfs at /dev/shm.  Changes nothing outside of a directory there."""

import argparse
import json
import mmap
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
GIB = 1 << 30


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"bench: waited {seconds} s for {what}")
        time.sleep(0.002)


class Gap:
    """One gap process in a session of its own, its reports in a file."""

    def __init__(self, program, directory, mebibytes, threads=0, dirty=0):
        self.out = directory / "gap.out"
        with open(self.out, "wb") as out:
            self.process = subprocess.Popen([program, str(mebibytes), str(dirty), "600", str(threads)],
                                            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                            start_new_session=True, cwd="/")
        self.pid = self.process.pid
        wait_for(lambda: "ready" in self.out.read_text(), 120, "gap to fill its memory")

    def report(self):
        before = self.out.read_text().count("max_gap_ms")
        os.kill(self.pid, signal.SIGUSR1)
        wait_for(lambda: self.out.read_text().count("max_gap_ms") > before, 120, "gap to verify its memory")
        return json.loads(self.out.read_text().splitlines()[-1])

    def end(self):
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def dump_and_restore(criu, program, mebibytes, threads=0):
    """The gap and the frozen part of one dump followed by one restore, in milliseconds."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ferry-bench-", dir="/dev/shm"))
    images = directory / "images"
    images.mkdir()
    gap = Gap(program, directory, mebibytes, threads)
    try:
        gap.report()  # from here on only the pause counts
        dump = subprocess.Popen([criu, "dump", "-t", str(gap.pid), "-D", images, "-o", "dump.log"])
        status = gap.process.wait() and dump.wait()
        if status != 0:
            sys.exit(f"bench: criu dump failed: {(images / 'dump.log').read_text()}")
        done = subprocess.run([criu, "restore", "-D", images, "-d", "-o", "restore.log", "-v3"])
        if done.returncode != 0:
            sys.exit(f"bench: criu restore failed: {(images / 'restore.log').read_text()}")
        result = gap.report()
        if result["bad_pages"]:
            sys.exit(f"bench: {result['bad_pages']} pages came back wrong")
        log = (images / "restore.log").read_text()
        frozen = json.loads(subprocess.run([str(HERE / "frozen.py"), images / "stats-dump"], check=True,
                                           capture_output=True, text=True).stdout)
        return {"gap_ms": result["max_gap_ms"], "frozen_ms": frozen["frozen_us"] / 1000, "log": log}
    finally:
        gap.end()
        shutil.rmtree(directory)


def limit_ms():
    """L: 1 GiB into a new file on tmpfs, plus first touch of 1 GiB."""
    block = os.urandom(1 << 20)
    path = f"/dev/shm/ferry-bench-limit-{os.getpid()}"
    start = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(1024):
            file.write(block)
    written = time.perf_counter() - start
    os.unlink(path)
    return 1000 * (written + first_touch())


def first_touch():
    start = time.perf_counter()
    with mmap.mmap(-1, GIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for at in range(0, GIB, 4096):
            memory[at] = 1
        return time.perf_counter() - start - touch_loop_cost()


_LOOP = []


def touch_loop_cost():
    """What the loop itself costs in this interpreter: the same stores into memory that is there."""
    if not _LOOP:
        with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            for _ in range(2):
                start = time.perf_counter()
                for at in range(0, 64 << 20, 4096):
                    memory[at] = 1
                cost = (time.perf_counter() - start) * 16
            _LOOP.append(cost)
    return _LOOP[0]


def row(what, value, reach, note=""):
    print(f"| {what} | {value} | {reach} | {note} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=str(HERE.parent / "build/release/bin"))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="leave the 1 GiB case out")
    options = parser.parse_args()
    criu = os.path.join(options.bin, "criu")
    with tempfile.TemporaryDirectory() as build:
        program = os.path.join(build, "gap")
        subprocess.run(["cc", "-O2", "-static", "-pthread", str(HERE / "gap.c"), "-o", program], check=True)
        print("| what | median | reach | all runs |\n|---|---|---|---|")
        runs = [dump_and_restore(criu, program, 1) for _ in range(options.runs)]
        gaps = sorted(r["gap_ms"] for r in runs)
        frozen = sorted(r["frozen_ms"] for r in runs)
        row("gap of 1 MiB, dump then restore", f"{statistics.median(gaps):.1f} ms", "8 ms", " ".join(f"{g:.1f}" for g in gaps))
        row("frozen part of that dump", f"{statistics.median(frozen):.2f} ms", "1 ms", " ".join(f"{g:.2f}" for g in frozen))
        threads = sorted(dump_and_restore(criu, program, 1, 1000)["gap_ms"] for _ in range(options.runs))
        row("the same gap with 1,000 threads", f"{statistics.median(threads):.0f} ms", "100 ms", " ".join(f"{g:.0f}" for g in threads))
        if not options.small:
            dump_and_restore(criu, program, 1024)  # memory the machine has not used before is slow: warm up
            large, limits = [], []
            for _ in range(options.runs):
                limits.append(limit_ms())
                large.append(dump_and_restore(criu, program, 1024)["gap_ms"])
            gap, limit = statistics.median(large), statistics.median(limits)
            row("the same gap with 1 GiB", f"{gap:.0f} ms = {gap / limit:.2f} L", f"1.1 L (L = {limit:.0f} ms)",
                " ".join(f"{g:.0f}" for g in sorted(large)))


if __name__ == "__main__":
    main()
