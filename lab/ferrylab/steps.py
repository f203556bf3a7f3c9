"""Running the steps of ./test and ./demo: said aloud, and ended properly when we are.

The children get Ctrl-C from the terminal themselves; SIGTERM, which only we get, is passed on.  In
both cases we wait until the child has cleaned up.
"""

import os
import shlex
import signal
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Terminated(KeyboardInterrupt):
    """SIGTERM; a kind of KeyboardInterrupt, because that is what nobody swallows, unittest included."""


def terminate_politely():
    def terminated(*_):
        raise Terminated
    signal.signal(signal.SIGTERM, terminated)


def run(argv, quiet_log=None):
    """Runs a step to its end and returns its exit code; with a log file its output goes there."""
    print(f"$ {shlex.join(os.path.relpath(a, ROOT) if a.startswith(ROOT) else a for a in argv)}", flush=True)
    log = open(quiet_log, "wb") if quiet_log else None
    child = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                             stderr=subprocess.STDOUT if log else None)
    try:
        return child.wait()
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):
            child.terminate()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child.wait()
        raise
    finally:
        if log:
            log.close()


def build(targets=(), preset="release"):
    """Configures and builds a preset; on failure shows the end of the output."""
    os.makedirs(os.path.join(ROOT, "build"), exist_ok=True)
    log = os.path.join(ROOT, "build", "build.log")
    wanted = ["--target", *targets] if targets else []
    for step in (["cmake", "--preset", preset], ["cmake", "--build", "--preset", preset, *wanted]):
        if run(step, log) != 0:
            with open(log, encoding="utf-8", errors="replace") as f:
                print("".join(f.readlines()[-60:]), flush=True)
            return False
    return True
