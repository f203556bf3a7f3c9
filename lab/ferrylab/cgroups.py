"""The control groups of one lab host: thawing and removing them, on cgroup v1 and v2."""

import contextlib
import os
import shutil

TOP = "/sys/fs/cgroup"


def roots():
    """Mount points of every cgroup hierarchy."""
    found = []
    with open("/proc/self/mounts", encoding="utf-8") as f:
        for line in f:
            fields = line.split()
            if fields[2] in ("cgroup", "cgroup2"):
                found.append(fields[1])
    return found


def _write(path, text):
    try:
        with open(path, "w", encoding="ascii") as f:
            f.write(text)
    except OSError:
        pass  # the file belongs to the other cgroup version, or the group has just gone


def _groups(cgroup):
    for root in roots():
        for directory, _, _ in os.walk(root + cgroup, topdown=False):
            yield directory


def thaw(cgroup):
    """A task frozen by the v1 freezer does not even die of SIGKILL before it is thawed
    (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst)."""
    for directory in _groups(cgroup):
        _write(directory + "/freezer.state", "THAWED")
        _write(directory + "/cgroup.freeze", "0")


def remove(cgroup):
    """Removes the group and those below it; true when nothing is left."""
    # Podman makes directories also where the host has mounted no hierarchy: plain ones, in the tmpfs above.
    mounted = roots()
    for name in os.listdir(TOP):
        place = os.path.join(TOP, name)
        if TOP in mounted or place in mounted or os.path.islink(place) or not os.path.isdir(place + cgroup):
            continue
        shutil.rmtree(place + cgroup, ignore_errors=True)
        with contextlib.suppress(OSError):  # other labs use it as well
            os.rmdir(place)
    for directory in _groups(cgroup):
        try:
            os.rmdir(directory)
        except OSError:
            pass
    return not any(os.path.isdir(root + cgroup) for root in roots())
