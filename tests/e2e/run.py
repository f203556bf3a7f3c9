#!/usr/bin/python3
"""Runs the end-to-end tests on a lab of two hosts.

  run.py [--bin DIR] [--state DIR] [--list] [--report FILE] [PATTERN …]

A test runs when its name contains one of the patterns; without patterns all run.
Prints one line a test and ends with the totals.  Exit code 0 means that no test failed.
"""

import argparse
import json
import os
import signal
import sys
import time
import traceback
import unittest

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, os.path.join(ROOT, "lab")]

import ferrylab  # noqa: E402 - needs the path above
import support  # noqa: E402
from ferrylab import steps  # noqa: E402


class DeadlinePassed(BaseException):
    """Not an Exception, and above all not an OSError: helpers that poll a server swallow those."""


class Outcome(unittest.TestResult):
    """One line for each test, its time, and for a failure everything that is known about it."""

    def __init__(self):
        super().__init__()
        self.passed = self.failed = self.skipped_count = 0

    def startTest(self, test):
        super().startTest(test)
        self.begin, self.verdict = time.monotonic(), None
        signal.signal(signal.SIGALRM, lambda *_: self._late(test))
        signal.alarm(support.deadline_of(test))

    def _late(self, test):
        # What a test leaves behind may hang as well: its clean-up gets a deadline of its own.
        signal.alarm(support.CLEAN_UP_SECONDS)
        raise DeadlinePassed(f"the test did not end within its deadline of {support.deadline_of(test)} s")

    def addFailure(self, test, err):
        self._failure(test, err)

    def addError(self, test, err):
        self._failure(test, err)

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._failure(subtest, err)

    def _failure(self, test, err):
        if self.verdict != "FAIL":
            self.failed += 1
        self.verdict = "FAIL"
        print(f"FAIL {name_of(test)} ({time.monotonic() - self.begin:.1f} s)")
        # unittest's own frames say nothing about the failure.
        told = traceback.TracebackException(*err)
        told.stack = traceback.StackSummary.from_list(
            [frame for frame in told.stack if "/unittest/" not in frame.filename])
        lines = "".join(told.format()).rstrip().splitlines()
        print("\n".join("     " + line for line in lines), flush=True)

    def addSkip(self, test, reason):
        self.verdict = "SKIP"
        self.skipped_count += 1
        print(f"SKIP {name_of(test)}: {reason}", flush=True)

    def stopTest(self, test):
        signal.alarm(0)
        super().stopTest(test)
        if self.verdict is None:
            self.passed += 1
            print(f"PASS {name_of(test)} ({time.monotonic() - self.begin:.1f} s)", flush=True)


def name_of(test):
    parts = test.id().split(".")
    return ".".join([parts[0].removeprefix("test_"), *parts[2:]]) if len(parts) > 2 else test.id()


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def chosen(patterns):
    loader = unittest.TestLoader()
    tests = list(flatten(loader.discover(HERE, pattern="test_*.py")))
    if loader.errors:
        sys.exit("\n".join(loader.errors))
    if patterns:
        tests = [t for t in tests if any(p in name_of(t) for p in patterns)]
        if not tests:
            sys.exit(f"no test is called anything like {' or '.join(patterns)}")
    return tests


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "release", "bin"))
    parser.add_argument("--state")
    parser.add_argument("--report", help="file for the totals, as JSON")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("patterns", nargs="*")
    options = parser.parse_args()
    tests = chosen(options.patterns)
    if options.list:
        print("\n".join(name_of(t) for t in tests))
        return 0

    steps.terminate_politely()
    print(f"e2e: {len(tests)} tests with the programs of {options.bin}", flush=True)
    outcome = Outcome()
    try:
        with ferrylab.Lab(hosts=2, path=[options.bin], state=options.state) as lab:
            support.LabCase.lab = lab
            support.LabCase.bin = os.path.abspath(options.bin)
            unittest.TestSuite(tests).run(outcome)
    except KeyboardInterrupt:
        signal.alarm(0)
        print("e2e: interrupted, the lab is taken down", flush=True)
        return 130
    except (ferrylab.LabError, RuntimeError) as error:
        sys.exit(f"e2e: {error}")
    if support.retries.count:
        print(f"e2e: Docker's own race (checkpoint blob already exists) was met and retried "
              f"{support.retries.count} times")
    if options.report:
        with open(options.report, "w", encoding="utf-8") as f:
            json.dump({"passed": outcome.passed, "failed": outcome.failed, "skipped": outcome.skipped_count}, f)
    print(f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped_count} skipped", flush=True)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
