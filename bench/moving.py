#!/usr/bin/python3
"""Measures moves between two lab hosts: how fast memory crosses, how long the pause is.

    bench/moving.py [--bin DIR] [--mib 1024] [--rate 0] [--shared] [--runs 3] [--ferry-options "--streams 4"]

Every run moves a container that holds that much memory and rewrites so many MiB of it in a second
(bench/gap.c), there or back, and verifies it afterwards.
"""

import argparse
import json
import os
import statistics
import sys

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, os.path.join(ROOT, "lab"))

import ferrylab  # noqa: E402 - needs the path above


def start(host, options):
    host.image("gap")
    host.docker("run", "-d", "--name", "mover", "--network", "none", "gap", "/usr/bin/gap",
                str(options.mib), str(options.rate), "3600", str(options.threads), *(["shared"] if options.shared else []))
    ferrylab.wait_until(lambda: "ready" in host.docker("logs", "mover"), 120, "gap to fill its memory")


def verify(host):
    before = host.docker("logs", "mover").count("max_gap_ms")
    host.docker("kill", "--signal", "USR1", "mover")
    ferrylab.wait_until(lambda: host.docker("logs", "mover").count("max_gap_ms") > before, 120, "gap to verify its memory")
    said = json.loads(host.docker("logs", "mover").splitlines()[-1])
    if said["bad_pages"]:
        sys.exit(f"{said['bad_pages']} pages are not what they were")
    return said["max_gap_ms"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "release", "bin"))
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=0, help="MiB rewritten in a second")
    parser.add_argument("--threads", type=int, default=0, help="that do nothing besides")
    parser.add_argument("--shared", action="store_true", help="memory that is mapped shared")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ferry-options", default="")
    parser.add_argument("--verbose", action="store_true", help="with every step of the source")
    parser.add_argument("--json", help="file for all reports")
    options = parser.parse_args()
    pauses, gaps, rates, reports = [], [], [], []
    print(f"{options.mib} MiB, {options.rate:g} MiB/s rewritten, {options.threads} threads{', shared' if options.shared else ''}; ferry migrate {options.ferry_options}")
    print(f"{'run':>3} {'pause ms':>9} {'gap ms':>8} {'rounds':>6} {'first round MB/s':>17} {'sent MiB':>9} {'last MiB':>9}")
    with ferrylab.Lab(hosts=2, path=[os.path.abspath(options.bin)], name="moving") as lab:
        hosts = [lab["h1"], lab["h2"]]
        start(hosts[0], options)
        for run in range(options.runs):
            here, there = hosts[run % 2], hosts[(run + 1) % 2]
            verify(here)  # forgets the longest gap so far
            done = here.run(["ferry", *(["-v"] if options.verbose else []), "migrate", "--json", *options.ferry_options.split(), "mover", there.name],
                            merge=False, timeout=300)
            report = json.loads(done.stdout)
            if options.verbose:
                print(done.stderr)
            gap = verify(there)
            rounds = report["rounds"]
            rate = rounds[0]["bytes"] / rounds[0]["ms"] / 1000 if rounds else 0
            last = rounds[-1]["bytes"] / 2**20 if rounds else 0
            print(f"{run + 1:>3} {report['pause_ms']:>9.1f} {gap:>8.1f} {len(rounds):>6} {rate:>17.0f} "
                  f"{report['bytes'] / 2**20:>9.1f} {last:>9.2f}", flush=True)
            pauses.append(report["pause_ms"])
            gaps.append(gap)
            rates.append(rate)
            reports.append(report)
        hosts[options.runs % 2].docker("rm", "--force", "mover")
    print(f"median: pause {statistics.median(pauses):.1f} ms, gap {statistics.median(gaps):.1f} ms, "
          f"{statistics.median(rates):.0f} MB/s")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as f:
            json.dump(reports, f, indent=1)


if __name__ == "__main__":
    main()
