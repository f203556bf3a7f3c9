#!/usr/bin/python3
"""Measures how long `ferry start` takes for a container of a checkpoint, with its memory first and with --lazy.

    bench/start.py [--bin DIR] [--mib 64 1024 4096] [--runs 3]

The container (bench/gap.c) rewrites a little of its memory all the time.  Measured is the time until `ferry start`
returns, which is when the container runs; the row of 1 MiB, always there, is what Docker itself takes for it.  After
every start all of the memory is verified, and with --lazy the time is told until the last page had come.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [HERE, os.path.join(ROOT, "lab")]

import ferrylab  # noqa: E402 - needs the path above
import moving  # noqa: E402

FETCHER = "ferry-lazy"


def fetchers(host):
    """One that is only not yet reaped by init does not count."""
    seen = host.run(["ps", "-eo", "stat=,comm="]).stdout.splitlines()
    return any(FETCHER in line and not line.startswith("Z") for line in seen)


def once(host, store, *options):
    """Milliseconds until it runs, and until its memory is there."""
    host.run(["ferry", "checkpoint", "create", "--checkpoint-dir", store, "mover", "cp"], timeout=300)
    ferrylab.wait_until(lambda: not host.inspect("mover")["State"]["Running"], 60, "the container to stop")
    begin = time.perf_counter()
    host.run(["ferry", "start", *options, "--checkpoint", "cp", "--checkpoint-dir", store, "mover"], timeout=300)
    runs = time.perf_counter() - begin
    ferrylab.wait_until(lambda: not fetchers(host), 120, "the last page to come", 0.01)
    whole = time.perf_counter() - begin
    moving.verify(host)
    shutil.rmtree(os.path.join(store, "cp"))
    return 1000 * runs, 1000 * whole


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "release", "bin"))
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 1024, 4096])
    parser.add_argument("--rate", type=float, default=10, help="MiB rewritten in a second")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"{'MiB':>5} {'start ms':>9} {'--lazy ms':>10} {'all there ms':>13}", flush=True)
    with ferrylab.Lab(hosts=1, path=[os.path.abspath(options.bin)], name="start") as lab:
        host = lab["h1"]
        for mib in [1, *options.mib]:
            moving.start(host, argparse.Namespace(mib=mib, rate=min(options.rate, mib), threads=0))
            with tempfile.TemporaryDirectory(dir=host.tmp) as store:
                plain = [once(host, store) for _ in range(options.runs)]
                lazy = [once(host, store, "--lazy") for _ in range(options.runs)]
            host.docker("rm", "--force", "mover")
            print(f"{mib:>5} {statistics.median(runs for runs, _ in plain):>9.0f} "
                  f"{statistics.median(runs for runs, _ in lazy):>10.0f} "
                  f"{statistics.median(whole for _, whole in lazy):>13.0f}", flush=True)


if __name__ == "__main__":
    main()
