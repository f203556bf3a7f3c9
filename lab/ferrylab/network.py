"""One switched network: a bridge in a namespace of its own, and a cable from it to every host.

Nothing of it is visible on the machine itself.  Interfaces die with their namespaces, so there is
nothing to take down.
"""

import ctypes
import os
import socket
import subprocess

SUBNET = "10.77.0.0/24"
PREFIX = 24
INTERFACE = "eth0"  # the name of the cable's end inside a host
CLONE_NEWNET = 0x40000000


def in_network_of(pid, *argv):
    done = subprocess.run(["nsenter", "--target", str(pid), "--net", "--", *argv],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout.strip()}")
    return done.stdout


def make_switch(pid):
    # Without spanning tree and its delay a port forwards from its first frame on.
    in_network_of(pid, "ip", "link", "add", "sw0", "type", "bridge", "stp_state", "0", "forward_delay", "0")
    in_network_of(pid, "ip", "link", "set", "sw0", "up")


def plug_in(switch_pid, host_pid, name, address):
    port = f"port-{name}"
    # The same link address for the same host each time it is made: the others may remember it.
    link_address = "02:fe:" + ":".join(f"{byte:02x}" for byte in socket.inet_aton(address))
    in_network_of(switch_pid, "ip", "link", "add", port, "type", "veth",
                  "peer", "name", INTERFACE, "address", link_address, "netns", str(host_pid))
    in_network_of(switch_pid, "ip", "link", "set", port, "master", "sw0", "up")
    in_network_of(host_pid, "ip", "address", "add", f"{address}/{PREFIX}", "dev", INTERFACE)
    in_network_of(host_pid, "ip", "link", "set", INTERFACE, "up")


def unplug(switch_pid, name):
    in_network_of(switch_pid, "ip", "link", "delete", f"port-{name}")


def _setns(fd):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


def socket_in(pid, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    """A socket of another network namespace.  setns(2) moves only the calling thread, and a socket
    stays in the namespace it was made in, so the thread goes there and comes straight back."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(there)
        try:
            return socket.socket(family, kind)
        finally:
            _setns(here)
    finally:
        os.close(there)
        os.close(here)
