#!/usr/bin/python3
"""Builds the libFuzzer targets (preset fuzz) and runs them, a minute in all, from seeds that are real.

  fuzz.py [--seconds N] [TARGET …]

What a target found is kept in build/fuzz/found, for a look and as a seed of the next run.
"""

import argparse
import glob
import os
import shutil
import struct
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
FOUND = os.path.join(ROOT, "build", "fuzz", "found")

CONFIG = b"""# what runc's users write
tcp-established
ghost-limit 10M
log-file "dump \\"verbose\\".log"
external mnt[/etc/hosts]:hosts # a comment
no-file-locks
join-ns user:/proc/1/ns/user,1000,1000
inherit-fd fd[3]:pipe:[907276]
cgroup-root cpu,cpuacct:/x
cpu-cap ^cpu
"""


def frame(kind, body):
    return struct.pack("<IIQ", kind, 0, len(body)) + body


def images():
    for path in glob.glob(os.path.join(FIXTURES, "*", "*.img")):
        if os.path.getsize(path) <= 65536:
            with open(path, "rb") as f:
                yield f.read()


def pagemaps():
    for path in glob.glob(os.path.join(FIXTURES, "*", "pagemap-*.img")):
        with open(path, "rb") as f:
            yield f.read()


def inputs():
    yield b"\0" + CONFIG
    # A dump request of runc's: images_dir_fd, pid, log_level, log_file, manage_cgroups, freeze_cgroup, one mount.
    options = (b"\x08\x07\x10\x2a\x48\x04\x52\x08dump.log\xc0\x01\x01\xe2\x02\x04/x/y"
               b"\xba\x01\x18\x0a\x0a/etc/hosts\x12\x0a/etc/hosts\xaa\x02\x0fnet[1]:external")
    yield b"\1\x08\x01\x12" + bytes([len(options)]) + options


def frames():
    message = b"\x0a\x04\x08\x01\x10\x02"
    for reader in b"mstf":
        yield bytes([reader]) + frame(1, message) + frame(2, b"bulk") + frame(2, b"")
    yield b"f" + frame(3, struct.pack("<IIQQQ", 1, 0, 1, 4096, 1) + bytes(4096)) + frame(4, struct.pack("<IIQQQ", 1, 0, 1, 0, 1))
    yield b'r{"id":"0123456789abcdef0123456789abcdef","container":"c","host":"h2","pid":1,"start_time":1}'


SEEDS = {"image": images, "pages": pagemaps, "input": inputs, "wire": frames}


def run(target, seconds):
    """True if nothing was found."""
    os.makedirs(FOUND, exist_ok=True)
    program = os.path.join(ROOT, "build", "fuzz", "bin", f"ferry_fuzz_{target}")
    with tempfile.TemporaryDirectory() as scratch:
        seeds = os.path.join(scratch, "seeds")
        os.mkdir(seeds)
        for i, content in enumerate(SEEDS[target]()):
            with open(os.path.join(seeds, str(i)), "wb") as f:
                f.write(content)
        for path in glob.glob(os.path.join(FOUND, f"{target}-*")):
            shutil.copy(path, seeds)
        new = os.path.join(scratch, "new")
        os.mkdir(new)
        done = subprocess.run([program, f"-max_total_time={seconds}", "-max_len=65536", "-rss_limit_mb=2048", "-timeout=10",
                               "-print_final_stats=1", f"-artifact_prefix={FOUND}/{target}-", new, seeds],
                              env={**os.environ, "TMPDIR": scratch}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", timeout=seconds + 120, check=False)
    lines = done.stdout.splitlines()
    if done.returncode != 0:
        print(f"FAIL fuzz.{target}\n     " + "\n     ".join(lines[-40:]), flush=True)
        return False
    runs = [line.split()[-1] for line in lines if line.startswith("stat::number_of_executed_units")]
    print(f"PASS fuzz.{target} ({' '.join(runs)} runs in {seconds} s)", flush=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("targets", nargs="*", default=list(SEEDS))
    options = parser.parse_args()
    if shutil.which("clang++") is None:
        print("SKIP fuzz: clang++ is not installed (./setup --tests)")
        return 77
    log = os.path.join(ROOT, "build", "fuzz.log")
    os.makedirs(os.path.dirname(log), exist_ok=True)
    with open(log, "wb") as f:
        for step in (["cmake", "--preset", "fuzz"],
                     ["cmake", "--build", "--preset", "fuzz", "--target", *[f"ferry_fuzz_{t}" for t in options.targets]]):
            if subprocess.run(step, cwd=ROOT, stdout=f, stderr=f, stdin=subprocess.DEVNULL, check=False).returncode != 0:
                with open(log, encoding="utf-8", errors="replace") as told:
                    print("fuzz: the build failed:\n" + "".join(told.readlines()[-40:]))
                return 1
    share = max(1, options.seconds // len(options.targets))
    # All of them, even when the first has found something.
    return 0 if all([run(target, share) for target in options.targets]) else 1


if __name__ == "__main__":
    sys.exit(main())
