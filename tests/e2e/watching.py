"""Looking at processes from outside, for tests that break something at a chosen moment."""

import os

from ferrylab import processes


def programs(host, path, argument=None):
    """Processes of the host whose program is the file at path, if given with that first argument.  Other labs run the
    same programs at the same time."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if os.readlink(f"/proc/{name}/exe") != path:
                continue
            with open(f"/proc/{name}/cmdline", "rb") as f:
                arguments = f.read().split(b"\0")
        except OSError:
            continue
        if argument is None or (len(arguments) > 1 and arguments[1] == argument.encode()):
            process = processes.Process.of(int(name))
            if process is not None and host.owns(process.pid):
                found.append(process)
    return found


def status(pid, field):
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
            for line in f:
                name, _, value = line.partition(":")
                if name == field:
                    return value.strip()
    except OSError:
        pass
    return None


def arguments_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as f:
            return f.read().split("\0")[:-1]
    except OSError:
        return []


def groups_of(pid):
    """The paths of its cgroups by controllers, empty for version 2."""
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as f:
        return dict(line.strip().split(":", 2)[1:] for line in f)


def group_of(pid):
    """The directory of its cgroup, in the hierarchy for numbers of processes if there is one of its own, and a limit
    that every group there has."""
    groups = groups_of(pid)
    if "pids" in groups:
        return f"/sys/fs/cgroup/pids{groups['pids']}", "pids.max"
    return f"/sys/fs/cgroup{groups['']}", "cgroup.max.descendants"


def freezer_state(pid):
    """THAWED, FREEZING or FROZEN, by the cgroup of the process; None without a freezer."""
    groups = groups_of(pid)
    try:
        if "freezer" in groups:
            with open(f"/sys/fs/cgroup/freezer{groups['freezer']}/freezer.state", encoding="ascii") as f:
                return f.read().strip()
        with open(f"/sys/fs/cgroup{groups['']}/cgroup.events", encoding="ascii") as f:
            return "FROZEN" if "frozen 1" in f.read() else "THAWED"
    except OSError:
        return None


def is_held(pid):
    """Stopped by a tracer or frozen by its cgroup: it does not run."""
    state = status(pid, "State")
    return bool(state) and (state[0] == "t" or freezer_state(pid) in ("FROZEN", "FREEZING"))


def untouched(pid):
    """What an engine could leave behind in a process: tracer, stop, mappings, descriptors, threads."""
    with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as f:
        maps = f.read()
    descriptors = sorted((int(fd), os.readlink(f"/proc/{pid}/fd/{fd}")) for fd in os.listdir(f"/proc/{pid}/fd"))
    signals = [status(pid, field) for field in ("SigBlk", "SigIgn", "SigCgt", "Seccomp", "NoNewPrivs")]
    return {"tracer": status(pid, "TracerPid"), "freezer": freezer_state(pid), "maps": maps,
            "descriptors": descriptors, "threads": len(os.listdir(f"/proc/{pid}/task")), "signals": signals}
