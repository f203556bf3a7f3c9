"""Any number of hosts on one machine, each with Docker and sshd, on one switched network."""

from .host import CommandFailed, Host
from .lab import Lab, LabError, down, open_lab
from .processes import WaitedTooLong, wait_until

__all__ = ["CommandFailed", "Host", "Lab", "LabError", "WaitedTooLong", "down", "open_lab", "wait_until"]
