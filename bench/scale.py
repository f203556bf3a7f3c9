#!/usr/bin/python3
"""Shows that cost grows with what is held, and no faster: saving and restoring a process (or tree) that holds
more and more of one kind of thing.

    bench/scale.py [--bin build/release/bin] [--runs 3] [KIND…]

Kinds: threads, processes, mappings, descriptors, memory (in MiB).  For every size the median time of `criu dump` and of
`criu restore` as their caller sees them, and how long the tree was frozen; at the end of each kind the slope in
microseconds for one more, over the lower and over the upper half of the sizes: two numbers that are alike mean a
straight line.  Needs root, a C compiler and a tmpfs at /dev/shm.  Changes nothing outside of a directory there."""

import argparse
import ctypes
import json
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
SIZES = {
    "threads": [10, 100, 1000, 3000, 10000],
    "processes": [10, 100, 300, 1000, 2000],
    "mappings": [10, 1000, 10000, 20000, 30000],
    "descriptors": [10, 1000, 10000, 20000, 50000],
    "memory": [64, 256, 1024, 4096, 8192],
}
# Dump and restore together, in milliseconds.
REACH = {("threads", 10000): 1000, ("processes", 1000): 1000, ("mappings", 30000): 500}
PATIENCE = 120


def timed(command, log):
    start = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL)
    took = 1000 * (time.perf_counter() - start)
    if done.returncode != 0:
        sys.exit(f"scale: {command[1]} failed: {log.read_text()[-2000:]}")
    return took


def adopt_orphans():
    """What loses its parent becomes ours: a pid is free for a restore only when all of its group are reaped, and the
    machine's init may take its time over that."""
    PR_SET_CHILD_SUBREAPER = 36
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit(f"scale: prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")


def reap_all():
    """Until no child is left, all of which have been killed."""
    signal.alarm(PATIENCE)  # ends us, as nobody catches it
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        signal.alarm(0)


def has_room(kind, count):
    """The memory of the process and its images lie in memory together."""
    with open("/proc/meminfo", encoding="ascii") as f:
        available = next(int(line.split()[1]) for line in f if line.startswith("MemAvailable"))
    return kind != "memory" or 2.2 * 1024 * count < available


def one(criu, program, kind, count):
    directory = pathlib.Path(tempfile.mkdtemp(prefix="ferry-scale-", dir="/dev/shm"))
    images, said = directory / "images", directory / "out"
    images.mkdir()
    pid = None
    try:
        with open(said, "wb") as out:
            process = subprocess.Popen([program, kind, str(count)], stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=subprocess.STDOUT, start_new_session=True, cwd="/")
        pid = process.pid
        deadline = time.monotonic() + PATIENCE
        while said.read_text() != "ready\n":
            if process.poll() is not None or time.monotonic() > deadline:
                return None  # more than this machine allows
            time.sleep(0.002)
        dump = timed([criu, "dump", "-t", str(pid), "-D", images, "-o", "dump.log"], images / "dump.log")
        process.wait()
        reap_all()
        restore = timed([criu, "restore", "-D", images, "-d", "-o", "restore.log"], images / "restore.log")
        frozen = json.loads(subprocess.run([str(HERE / "frozen.py"), images / "stats-dump"], check=True,
                                           capture_output=True, text=True).stdout)
        return dump, restore, (frozen["freezing_us"] + frozen["frozen_us"]) / 1000
    finally:
        if pid is not None:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            reap_all()
        shutil.rmtree(directory)


def slope(points):
    """Microseconds for one more, by least squares."""
    mean_x = statistics.mean(x for x, _ in points)
    mean_y = statistics.mean(y for _, y in points)
    below = sum((x - mean_x) ** 2 for x, _ in points)
    return 1000 * sum((x - mean_x) * (y - mean_y) for x, y in points) / below


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=str(HERE.parent / "build/release/bin"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--most", type=int, default=10**9, help="leave larger sizes out")
    parser.add_argument("kinds", nargs="*", default=[])
    options = parser.parse_args()
    criu = os.path.join(options.bin, "criu")
    adopt_orphans()
    with tempfile.TemporaryDirectory() as build:
        program = os.path.join(build, "hold")
        subprocess.run(["cc", "-O2", "-static", "-pthread", str(HERE / "hold.c"), "-o", program], check=True)
        print("| what | dump | frozen | restore | together | reach |\n|---|---|---|---|---|---|")
        for kind in options.kinds or SIZES:
            points = []
            for count in [size for size in SIZES[kind] if size <= options.most]:
                runs = [one(criu, program, kind, count) for _ in range(options.runs)] if has_room(kind, count) else [None]
                if None in runs:
                    print(f"| {count:,} {kind} | more than this machine allows | | | | |", flush=True)
                    continue
                dump, restore, frozen = (statistics.median(run[i] for run in runs) for i in range(3))
                points.append((count, dump + restore))
                reach = REACH.get((kind, count))
                print(f"| {count:,} {kind} | {dump:.0f} ms | {frozen:.0f} ms | {restore:.0f} ms | {dump + restore:.0f} ms |"
                      f" {f'{reach} ms' if reach else ''} |", flush=True)
            if len(points) >= 4:
                half = len(points) // 2 + 1
                print(f"| one more of {kind} | | | | {slope(points[:half]):.1f} us, then {slope(points[half - 1:]):.1f} us | |",
                      flush=True)


if __name__ == "__main__":
    main()
