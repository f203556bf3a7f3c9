#!/usr/bin/python3
"""The second half of ./demo, after the set-up: build, two hosts, one move, two logs side by side."""

import os
import re
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from ferrylab import CommandFailed, Lab, LabError, WaitedTooLong, steps, wait_until  # noqa: E402

COUNT = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 1; done"
BIN = os.path.join(steps.ROOT, "build", "release", "bin")


def say(text):
    print(f"\n{text}", flush=True)


def show(host, command, argv):
    """Runs a command in a host as a user would see it, and returns its output."""
    print(f"{host.name}$ {command}", flush=True)
    output = host.run(argv, timeout=120).stdout
    print("".join(f"    {line}\n" for line in output.splitlines()), end="", flush=True)
    return output


def lines_of(host):
    return host.docker("logs", "looper").split()


def counted_to(host, number):
    wait_until(lambda: len(lines_of(host)) > number, 30, f"the count to reach {number} on {host.name}", 0.2)


def side_by_side(left, right):
    """The numbers of both hosts, each in the row of its value."""
    print(f"    {'h1':>8}{'h2':>8}")
    rows = [(n if n in left else "", n if n in right else "") for n in sorted({*left, *right}, key=int)]
    head = max(0, len(rows) - 12)
    if head:
        print(f"    {'…':>8}{'…':>8}")
    for near, far in rows[head:]:
        print(f"    {near:>8}{far:>8}")


def main():
    steps.terminate_politely()
    say("1. Building ferry")
    if not steps.build(["ferry", "criu"]):
        return "demo: the build failed, the end of its output is above"
    say("2. Starting two hosts, each with its own network, Docker daemon and sshd")
    with Lab(hosts=2, path=[BIN]) as lab:
        h1, h2 = lab["h1"], lab["h2"]
        h1.image("busybox")
        print(f"    h1 {h1.address}, h2 {h2.address}, on one switch")
        say("3. A container that counts, on h1")
        show(h1, f"docker run -d --name looper busybox /bin/sh -c '{COUNT}'",
             ["docker", "run", "-d", "--name", "looper", "busybox", "/bin/sh", "-c", COUNT])
        counted_to(h1, 4)
        show(h1, "docker logs looper", ["docker", "logs", "looper"])
        say("4. One command moves it to h2")
        report = show(h1, "ferry migrate --keep-source looper h2", ["ferry", "migrate", "--keep-source", "looper", "h2"])
        arrived_with = len(lines_of(h1))
        counted_to(h2, arrived_with + 4)
        say("5. It goes on counting on h2")
        show(h2, "docker ps", ["docker", "ps", "--format", "{{.Names}}  {{.Image}}  {{.Status}}"])
        say("The two logs side by side (h2 shows the earlier lines too):")
        left, right = lines_of(h1), lines_of(h2)
        side_by_side(left, right)
        if [int(n) for n in right] != list(range(len(right))):
            return f"demo: a number is missing or there twice: {' '.join(right)}"
        print(f"    {len(right)} numbers, none missing, none twice")
        pause = re.search(r"(?i)pause\D*([\d.]+ *m?s)", report)
        if not pause:
            return "demo: ferry did not say how long the pause was"
        say(f"The container was paused for {pause.group(1)}.")
    return 0


try:
    sys.exit(main())
except KeyboardInterrupt:
    print("\ndemo: interrupted; the hosts have been taken down")
    sys.exit(130)
except (CommandFailed, LabError, WaitedTooLong, RuntimeError) as error:
    sys.exit(f"demo: {error}")
