#!/usr/bin/python3
"""Runs the end-to-end tests on a lab of two hosts, or on several labs at the same time.

  run.py [--bin DIR] [--state DIR] [--lanes N] [--list] [--report FILE] [PATTERN …]

A test runs when its name contains one of the patterns; without patterns all run.
Prints one line a test and ends with the totals.  Exit code 0 means that no test failed.
"""

import argparse
import collections
import json
import multiprocessing
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

    def __init__(self, say):
        super().__init__()
        self.say = say
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
        # unittest's own frames say nothing about the failure.
        told = traceback.TracebackException(*err)
        told.stack = traceback.StackSummary.from_list(
            [frame for frame in told.stack if "/unittest/" not in frame.filename])
        lines = "".join(told.format()).rstrip().splitlines()
        took = time.monotonic() - self.begin
        self.say("\n".join([f"FAIL {name_of(test)} ({took:.1f} s)", *("     " + line for line in lines)]))

    def addSkip(self, test, reason):
        self.verdict = "SKIP"
        self.skipped_count += 1
        self.say(f"SKIP {name_of(test)}: {reason}")

    def stopTest(self, test):
        signal.alarm(0)
        super().stopTest(test)
        if self.verdict is None:
            self.passed += 1
            self.say(f"PASS {name_of(test)} ({time.monotonic() - self.begin:.1f} s)")


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
    # A class that another file imports is found there as well.
    tests = list({t.id(): t for t in flatten(loader.discover(HERE, pattern="test_*.py"))}.values())
    if loader.errors:
        sys.exit("\n".join(loader.errors))
    if patterns:
        tests = [t for t in tests if any(p in name_of(t) for p in patterns)]
        if not tests:
            sys.exit(f"no test is called anything like {' or '.join(patterns)}")
    return tests


def batches_of(tests):
    """The tests of each class, in their order: they share names, and hosts as the one before has left them.  First what
    may take longest."""
    batches = collections.OrderedDict()
    for test in tests:
        batches.setdefault(type(test), []).append(test)
    return sorted(batches.values(), key=lambda batch: -sum(support.deadline_of(t) for t in batch))


class Lane:
    """One lab, on which a process runs whatever is next."""

    def __init__(self, number, options, batches, shared):
        self.number, self.options, self.batches = number, options, batches
        self.next, self.talking, self.results = shared

    def say(self, text):
        with self.talking:
            print(text, flush=True)

    def run(self):
        outcome, trouble = Outcome(self.say), None
        state = self.options.state or ferrylab.lab.STATE
        try:
            with ferrylab.Lab(hosts=2, path=[self.options.bin], state=f"{state}-{self.number}" if self.number else state) as lab:
                support.LabCase.lab = lab
                support.LabCase.bin = os.path.abspath(self.options.bin)
                while (batch := self.take()) is not None:
                    unittest.TestSuite(batch).run(outcome)
        except KeyboardInterrupt:
            signal.alarm(0)
            trouble = "interrupted"
        except (ferrylab.LabError, RuntimeError) as error:
            trouble = str(error)
        self.results.put((outcome.passed, outcome.failed, outcome.skipped_count, support.retries.count, trouble))

    def take(self):
        with self.next.get_lock():
            at, self.next.value = self.next.value, self.next.value + 1
        return self.batches[at] if at < len(self.batches) else None


def run_lanes(options, tests):
    """(passed, failed, skipped, Docker's races, what else went wrong or None)"""
    batches = batches_of(tests) if options.lanes > 1 else [tests]
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    shared = fork.Value("i", 0), fork.Lock(), results
    lanes = [fork.Process(target=Lane(i, options, batches, shared).run) for i in range(min(options.lanes, len(batches)))]
    for lane in lanes:
        lane.start()
    try:
        for lane in lanes:
            lane.join()
    except KeyboardInterrupt as stop:
        for lane in lanes if isinstance(stop, steps.Terminated) else []:
            lane.terminate()  # Ctrl-C has reached them already
        for lane in lanes:
            lane.join()
    totals, troubles = [0, 0, 0, 0], []
    for lane in lanes:
        if results.empty():
            troubles.append("a lane ended early")
            continue
        *numbers, trouble = results.get()
        totals = [a + b for a, b in zip(totals, numbers)]
        troubles += [trouble] if trouble else []
    return (*totals, "; ".join(troubles) or None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "release", "bin"))
    parser.add_argument("--state")
    parser.add_argument("--lanes", type=int, default=1, help="how many labs run tests at the same time")
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
    passed, failed, skipped, retries, trouble = run_lanes(options, tests)
    if trouble and "interrupted" in trouble.split("; "):
        print("e2e: interrupted, the lab is taken down", flush=True)
        return 130
    if trouble:
        sys.exit(f"e2e: {trouble}")
    if retries:
        print(f"e2e: Docker's own race (checkpoint blob already exists) was met and retried {retries} times")
    if options.report:
        with open(options.report, "w", encoding="utf-8") as f:
            json.dump({"passed": passed, "failed": failed, "skipped": skipped}, f)
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
