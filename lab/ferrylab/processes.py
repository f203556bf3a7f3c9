"""Processes by pid and start time, and finding every process that belongs to a lab.

A pid alone says nothing after a crash: it may have been given to somebody else.  The pair of pid
and start time (proc(5), field 22 of /proc/PID/stat) is unique until the next boot.
"""

import os
import signal
import time
from dataclasses import dataclass

MARK = "FERRY_LAB"  # environment variable that everything started inside a lab inherits


def stat_fields(pid):
    """Fields of /proc/PID/stat from the state on, or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            text = f.read()
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses itself: split after the last one.
    return text[text.rindex(b")") + 2:].split()


@dataclass(frozen=True)
class Process:
    pid: int
    start: int  # clock ticks after boot

    @staticmethod
    def of(pid):
        fields = stat_fields(pid)
        return Process(pid, int(fields[19])) if fields else None

    def alive(self):
        fields = stat_fields(self.pid)
        return bool(fields) and int(fields[19]) == self.start and fields[0] not in (b"Z", b"X")

    def kill(self, signum=signal.SIGKILL):
        """Sends the signal unless the process is gone; a pidfd makes check and signal one thing."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(fd, signum)
        except OSError:
            pass
        finally:
            os.close(fd)

    def to_json(self):
        return [self.pid, self.start]

    @staticmethod
    def from_json(pair):
        return Process(pair[0], pair[1])


def namespace(pid, kind):
    """The identity of a namespace as (device, inode), or None."""
    try:
        st = os.stat(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return None
    return (st.st_dev, st.st_ino)


def _read(path):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return b""


def belongs(pid, mark, cgroup, mount_namespace):
    """Whether it carries the mark in its environment, lives in the cgroup (a path such as
    /ferry-lab-x-h1) or in the mount namespace.  Three ways because none is enough alone: programs
    in containers have another environment, sshd overwrites its own, and a namespace's identity may
    be reused once all its processes are gone."""
    inside = cgroup.encode() + b"/"
    return (f"{MARK}={mark}".encode() in _read(f"/proc/{pid}/environ").split(b"\0")
            or any((line.split(b":", 2)[-1] + b"/").startswith(inside)
                   for line in _read(f"/proc/{pid}/cgroup").splitlines())
            or (mount_namespace is not None and namespace(pid, "mnt") == mount_namespace))


def belonging(mark, cgroup, mount_namespace):
    """Living processes of which that is so."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        pid = int(name)
        process = Process.of(pid)
        if process is None or not process.alive():
            continue
        if belongs(pid, mark, cgroup, mount_namespace):
            found.append(process)
    return found


class WaitedTooLong(Exception):
    pass


def wait_until(condition, timeout, what, interval=0.02):
    """Polls until condition() is true and returns its value; says what it waited for otherwise."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise WaitedTooLong(f"waited {timeout} s for {what() if callable(what) else what}")
        time.sleep(interval)
