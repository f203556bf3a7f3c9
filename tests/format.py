#!/usr/bin/python3
"""Whether the sources are as .clang-format says, by the clang-format of Debian 12; another version breaks lines
elsewhere.

  format.py            compares; exit code 1 and the places if not, 77 if that clang-format is not there
  format.py --write    formats them
"""

import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
FORMATTER = "clang-format-14"
DIRECTORIES = ("src", "tests", "bench")
SUFFIXES = (".cc", ".h", ".c")


def sources():
    for directory in DIRECTORIES:
        for path, _, names in os.walk(os.path.join(ROOT, directory)):
            yield from (os.path.join(path, name) for name in names if name.endswith(SUFFIXES))


def main():
    if shutil.which(FORMATTER) is None:
        print(f"SKIP format: {FORMATTER} is not installed (./setup --tests)")
        return 77
    what = ["-i"] if "--write" in sys.argv[1:] else ["--dry-run", "--Werror"]
    return subprocess.run([FORMATTER, *what, *sorted(sources())], check=False).returncode


sys.exit(main())
