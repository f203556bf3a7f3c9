"""Keys and configuration of the real sshd that every host runs.

Everything is made on the spot for one lab: a host key for each host, one user key that may log in
as root, and a known_hosts file made from the host keys, so that checking stays strict.
"""

import os
import subprocess


def make_key(path, comment):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path],
                   stdin=subprocess.DEVNULL, check=True, timeout=30)


def write(path, text, mode=0o644):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as f:
        f.write(text)


def public_key(path):
    with open(path + ".pub", encoding="utf-8") as f:
        return " ".join(f.read().split()[:2])


def known_hosts(hosts):
    """hosts: (name, address, path of the host key)"""
    return "".join(f"{name},{address} {public_key(key)}\n" for name, address, key in hosts)


def server_config(address, host_key, authorized_keys, environment):
    settings = " ".join(f'"{name}={value}"' for name, value in environment.items())
    # StrictModes would refuse key files below a world-writable directory such as /var/tmp.
    return f"""ListenAddress {address}
Port 22
HostKey {host_key}
AuthorizedKeysFile {authorized_keys}
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PubkeyAuthentication yes
UseDNS no
PrintMotd no
MaxStartups 100
PidFile /run/sshd.pid
Subsystem sftp internal-sftp
SetEnv {settings}
"""


def client_config(user_key, known):
    return f"""Host *
    User root
    IdentityFile {user_key}
    IdentitiesOnly yes
    GlobalKnownHostsFile {known}
    UserKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    LogLevel ERROR
"""
