#!/usr/bin/python3
"""Measures moves whose memory follows (post-copy), between two lab hosts on this machine.

    bench/lazy.py [--bin DIR] [--mib 256 1024] [--runs 5] [--rate 400] [--no-hybrid]

Every run moves a container (bench/gap.c) there or back and verifies all of its memory afterwards.  The first table
is of `ferry migrate --mode post-copy`, for each size: the pause; how many faults waited for a page while the
background stream ran, and how long; how long it took until the last page was there, compared with the time in which
this machine touches as much new memory for the first time.  The second one is of `--mode auto`, for a container that
rewrites its memory as fast as one processor can, compared with the time of one pass over it (the first round).
"""

import argparse
import json
import mmap
import os
import statistics
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [HERE, os.path.join(ROOT, "lab")]

import ferrylab  # noqa: E402 - needs the path above
import moving  # noqa: E402

MIB = 1 << 20
AS_FAST_AS_IT_CAN = 100000  # MiB/s


def first_touch(mib):
    """Seconds for one byte in every page of so much new memory, without huge pages, as missing ones are brought."""
    memory = mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    count = mib * MIB // mmap.PAGESIZE
    ones = b"\1" * count
    begin = time.perf_counter()
    memory[::mmap.PAGESIZE] = ones
    took = time.perf_counter() - begin
    memory.close()
    return took


class Mover:
    """A container, and where it is."""

    def __init__(self, lab, mib, rate):
        self.here, self.there = lab["h1"], lab["h2"]
        self.there.image("gap")
        moving.start(self.here, argparse.Namespace(mib=mib, rate=rate, threads=0, shared=False))

    def move(self, *options):
        begin = time.perf_counter()
        done = self.here.run(["ferry", "migrate", "--json", *options, "mover", self.there.name], merge=False, timeout=600)
        took = time.perf_counter() - begin
        self.here, self.there = self.there, self.here
        moving.verify(self.here)
        return json.loads(done.stdout), took

    def end(self):
        self.here.docker("rm", "--force", "mover")


def middle(values):
    return statistics.median(values)


def post_copy(lab, options):
    print(f"--mode post-copy, {options.rate:g} MiB/s rewritten, medians of {options.runs}")
    print(f"{'MiB':>5} {'pause ms':>9} {'at most':>8} {'faults':>7} {'median us':>10} {'p99 us':>8} {'followed in s':>14} {'first touch s':>14}", flush=True)
    for mib in options.mib:
        mover = Mover(lab, mib, options.rate)
        reports, touches = [], []
        for _ in range(options.runs):
            reports.append(mover.move("--mode", "post-copy")[0])
            touches.append(first_touch(mib))
        mover.end()
        pauses, fetched = [r["pause_ms"] for r in reports], [r["fetched"] for r in reports]
        print(f"{mib:>5} {middle(pauses):>9.1f} {max(pauses):>8.1f} {middle(f['faults'] for f in fetched):>7.0f} "
              f"{middle(f['fault_median_us'] for f in fetched):>10.0f} {middle(f['fault_p99_us'] for f in fetched):>8.0f} "
              f"{middle(f['ms'] for f in fetched) / 1000:>14.2f} {middle(touches):>14.2f}", flush=True)


def hybrid(lab, options):
    print(f"\n--mode auto, rewritten as fast as one processor can, medians of {options.runs}")
    print(f"{'MiB':>5} {'pause ms':>9} {'at most':>8} {'rounds':>7} {'one pass s':>11} {'memory over s':>14} {'move s':>7}", flush=True)
    for mib in options.mib:
        mover = Mover(lab, mib, AS_FAST_AS_IT_CAN)
        pauses, rounds, passes, memory, whole = [], [], [], [], []
        for _ in range(options.runs):
            report, took = mover.move()
            in_rounds = sum(r["ms"] for r in report["rounds"])
            pauses.append(report["pause_ms"])
            rounds.append(len(report["rounds"]))
            passes.append(report["rounds"][0]["ms"] / 1000)
            memory.append((in_rounds + report["fetched"]["ms"]) / 1000)
            whole.append(took)
        mover.end()
        print(f"{mib:>5} {middle(pauses):>9.1f} {max(pauses):>8.1f} {middle(rounds):>7.0f} {middle(passes):>11.2f} "
              f"{middle(memory):>14.2f} {middle(whole):>7.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "release", "bin"))
    parser.add_argument("--mib", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rate", type=float, default=400, help="MiB rewritten in a second, in random places, while memory follows")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-hybrid", action="store_true")
    options = parser.parse_args()
    with ferrylab.Lab(hosts=2, path=[os.path.abspath(options.bin)], name="lazy") as lab:
        post_copy(lab, options)
        if not options.no_hybrid:
            hybrid(lab, options)


if __name__ == "__main__":
    main()
