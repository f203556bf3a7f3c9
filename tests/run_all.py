#!/usr/bin/python3
"""The second half of ./test, after the set-up: build, unit tests, end-to-end tests, fuzz targets, totals."""

import json
import os
import shutil
import sys
import tempfile
import xml.etree.ElementTree

sys.dont_write_bytecode = True
ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "lab"))

from ferrylab import steps  # noqa: E402 - needs the path above

USAGE = "usage: ./test [unit [REGEX] | e2e [NAME …] | fuzz [TARGET …] | asan [NAME …]]"
# What a sanitizer finds ends the program with an error, which the test sees, and is kept here; unless a runtime
# started the program, which hands no environment on.
FINDINGS = os.path.join(ROOT, "build", "asan", "findings")


def unit_tests(scratch, patterns, preset="release"):
    """(passed, failed, skipped) of what CTest runs."""
    report = os.path.join(scratch, "unit.xml")
    only = ["--tests-regex", patterns[0]] if patterns else []
    code = steps.run(["ctest", "--test-dir", os.path.join(ROOT, "build", preset), "--output-on-failure",
                      "--timeout", "120", "--parallel", str(os.cpu_count() or 1), "--output-junit", report, *only])
    try:
        totals = xml.etree.ElementTree.parse(report).getroot().attrib
    except (OSError, xml.etree.ElementTree.ParseError) as error:
        print(f"test: ctest (exit code {code}) left no report: {error}")
        return 0, 1, 0
    failed = int(totals["failures"])
    skipped = int(totals["skipped"]) + int(totals["disabled"])
    passed = int(totals["tests"]) - failed - skipped
    if passed + failed == 0:
        print("test: CTest knows no such test")
        failed = 1
    return passed, max(failed, 1) if code != 0 else failed, skipped


def e2e_tests(scratch, patterns, preset="release"):
    """(passed, failed, skipped) of the end-to-end tests."""
    report = os.path.join(scratch, "e2e.json")
    code = steps.run(["/usr/bin/python3", os.path.join(ROOT, "tests", "e2e", "run.py"), "--report", report,
                      "--bin", os.path.join(ROOT, "build", preset, "bin"),
                      "--lanes", "1" if patterns else str(min(os.cpu_count() or 1, 2)), *patterns])
    try:
        with open(report, encoding="utf-8") as f:
            totals = json.load(f)
    except (OSError, ValueError):
        print(f"test: the end-to-end tests ended early with exit code {code}")
        return 0, 1, 0
    return totals["passed"], totals["failed"], totals["skipped"]


def fuzz_tests(_, targets):
    """(passed, failed, skipped) of the fuzz targets, a minute in all; they build what they need themselves."""
    code = steps.run(["/usr/bin/python3", os.path.join(ROOT, "tests", "fuzz.py"), *targets])
    return (1, 0, 0) if code == 0 else (0, 0, 1) if code == 77 else (0, 1, 0)


def sanitized_tests(scratch, patterns):
    """(passed, failed, skipped) of the unit, live and end-to-end tests with programs that watch themselves:
    AddressSanitizer with its search for leaks, and UndefinedBehaviorSanitizer.  What leaves by _exit(2), as forked
    children do, is not searched for leaks."""
    shutil.rmtree(FINDINGS, ignore_errors=True)
    os.makedirs(FINDINGS)
    os.environ["ASAN_OPTIONS"] = f"detect_leaks=1:log_path={FINDINGS}/found"
    os.environ["UBSAN_OPTIONS"] = "print_stacktrace=1"
    counts = []
    if not patterns:
        if not steps.build(["live_tests"]):
            return 0, 1, 0
        os.environ["FERRY_LIVE_CRIU"] = os.path.join(ROOT, "build", "asan", "bin", "criu")
        counts += [unit_tests(scratch, [], "asan"), unit_tests(scratch, ["^live\\."])]
    counts.append(e2e_tests(scratch, patterns, "asan"))
    passed, failed, skipped = (sum(n) for n in zip(*counts))
    found = sorted(os.listdir(FINDINGS))
    for name in found:
        with open(os.path.join(FINDINGS, name), encoding="utf-8", errors="replace") as f:
            print(f"test: {name}:\n{f.read(4000)}")
    return passed, failed + len(found), skipped


def main():
    which, patterns = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("all", [])
    kinds = {"all": [unit_tests, e2e_tests, fuzz_tests], "unit": [unit_tests], "e2e": [e2e_tests],
             "fuzz": [fuzz_tests], "asan": [sanitized_tests]}.get(which)
    if kinds is None:
        sys.exit(USAGE)
    steps.terminate_politely()
    try:
        if which != "fuzz" and not steps.build(preset="asan" if which == "asan" else "release"):
            print("test: the build failed, the end of its output is above")
            print("0 passed, 1 failed, 0 skipped")
            return 1
        with tempfile.TemporaryDirectory() as scratch:
            passed, failed, skipped = (sum(n) for n in zip(*(kind(scratch, patterns) for kind in kinds)))
    except KeyboardInterrupt:
        print("test: interrupted; everything that was started has been ended")
        return 130
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0


sys.exit(main())
