"""Images of the programs that people run: databases, runtimes, servers.  What runs in them is in lab/services."""

import glob
import os
import subprocess
import tempfile

from .tree import base, resolver

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = os.path.join(os.path.dirname(HERE), "services")

POSTGRES = 70  # users of the images; no program cares for the number
MYSQL = 71
MEMCACHED = 72
SSHD = 73
GUEST = 1000

JAVA = "/usr/lib/jvm/java-17-openjdk-amd64"
# What a machine may have besides the headless runtime.
NO_DISPLAY = ("src.zip", "ct.sym", "libawt_xawt.so", "libsplashscreen.so", "libjawt.so", "libatk-wrapper.so")


def own(tree, name, path, mode=0o644):
    with open(os.path.join(PROGRAMS, name), encoding="utf-8") as f:
        tree.text(path, f.read(), mode)


def user(tree, name, number, shell="/bin/sh"):
    tree.append("/etc/passwd", f"{name}:x:{number}:{number}:{name}:/home/{name}:{shell}\n")
    tree.append("/etc/group", f"{name}:x:{number}:\n")


def postgres():
    tree = base()
    for name in ("postgres", "initdb"):
        tree.program(f"/usr/lib/postgresql/15/bin/{name}")
    tree.program("/usr/lib/postgresql/15/bin/psql", "/usr/bin/psql")
    # The compiler of queries would bring the whole of LLVM with it; PostgreSQL does without.
    tree.folder("/usr/lib/postgresql/15/lib", skip=("bitcode", "pgxs"), without=("llvmjit.so",))
    tree.folder("/usr/share/postgresql/15", skip=("man",))
    tree.file("/usr/share/zoneinfo/Etc/UTC")
    resolver(tree)
    user(tree, "postgres", POSTGRES)
    tree.directory("/data", 0o700, POSTGRES)
    own(tree, "postgres.sh", "/srv/start", 0o755)
    return ["USER postgres", "WORKDIR /data", "CMD [\"/srv/start\"]"], tree


def mariadb():
    tree = base()
    tree.program("/usr/sbin/mariadbd")
    tree.folder("/usr/share/mysql")
    resolver(tree)
    user(tree, "mysql", MYSQL)
    tree.directory("/data", 0o700, MYSQL)
    own(tree, "mariadb.sh", "/srv/start", 0o755)
    tree.text("/srv/users.sql", "CREATE USER IF NOT EXISTS ferry@'%';\nGRANT ALL ON *.* TO ferry@'%';\n"
                                "CREATE DATABASE IF NOT EXISTS ferry;\n")
    return ["USER mysql", "WORKDIR /data", "CMD [\"/srv/start\"]"], tree


def memcached():
    tree = base()
    tree.program("/usr/bin/memcached")
    resolver(tree)
    user(tree, "memcache", MEMCACHED)
    return ["USER memcache", "CMD [\"/usr/bin/memcached\", \"-m\", \"64\", \"-t\", \"4\"]"], tree


def node():
    tree = base()
    tree.program("/usr/bin/node")
    resolver(tree)
    own(tree, "service.js", "/srv/service.js")
    return ["CMD [\"/usr/bin/node\", \"/srv/service.js\"]"], tree


def java():
    tree = base()
    for name in ("bin/java", "lib/jspawnhelper"):
        tree.program(f"{JAVA}/{name}")
    # Debian keeps a part of the runtime's settings under /etc and links to it.
    for folder in ("conf", "lib"):
        tree.folder(f"{JAVA}/{folder}", skip=("jfr",), without=NO_DISPLAY)
    with tempfile.TemporaryDirectory() as scratch:
        # The compiler is a module of the runtime, so a runtime is enough.
        subprocess.run([f"{JAVA}/bin/java", "-m", "jdk.compiler/com.sun.tools.javac.Main", "-d", scratch,
                        os.path.join(PROGRAMS, "Service.java")], check=True, timeout=120)
        for path in sorted(glob.glob(os.path.join(scratch, "*.class"))):
            with open(path, "rb") as f:
                tree.bytes("/srv/" + os.path.basename(path), f.read())
    resolver(tree)
    return ["CMD [\"%s/bin/java\", \"-Xmx32m\", \"-XX:+UseSerialGC\", \"-cp\", \"/srv\", \"Service\"]" % JAVA], tree


def terminfo(tree):
    for name in ("s/screen", "s/screen-256color", "t/tmux", "t/tmux-256color", "x/xterm", "x/xterm-256color"):
        tree.file(f"/lib/terminfo/{name}")


def tmux():
    tree = base()
    tree.program("/usr/bin/tmux")
    tree.program("/usr/bin/vim.tiny", "/usr/bin/vim")  # to its shell "vi" is busybox itself
    terminfo(tree)
    tree.folder("/usr/lib/locale/C.utf8")
    resolver(tree)
    return ["ENV TERM=xterm", "ENV LANG=C.UTF-8", "CMD [\"/usr/bin/tmux\", \"-u\", \"new-session\", \"/bin/sh\"]"], tree


def sshd():
    tree = base()
    tree.program("/usr/sbin/sshd")
    resolver(tree)
    user(tree, "sshd", SSHD, "/bin/false")
    user(tree, "guest", GUEST)
    tree.directory("/home/guest", 0o755, GUEST)
    tree.directory("/run/sshd")
    tree.directory("/etc/ssh")
    tree.text("/etc/shadow", "root:*:19000::::::\nguest:*:19000::::::\n", 0o600)
    tree.text("/etc/ssh/sshd_config", "HostKey /etc/ssh/host_key\nAuthorizedKeysFile /etc/ssh/keys\nUsePAM no\n"
                                      "PasswordAuthentication no\nSyslogFacility DAEMON\n")
    return ["CMD [\"/usr/sbin/sshd\", \"-D\", \"-e\"]"], tree


def compiler():
    """make and the C compiler with what a small program needs of it."""
    tree = base()
    gcc = os.path.dirname(said_by_gcc("-print-libgcc-file-name"))
    tree.program("/usr/bin/make")
    for name in ("gcc", "as", "ld"):
        tree.program(f"/usr/bin/{name}")
    for name in ("cc1", "collect2", "lto-wrapper", "liblto_plugin.so"):
        tree.program(f"{gcc}/{name}")
    for name in ("libgcc.a", "libgcc_s.so", "crtbeginS.o", "crtendS.o"):
        tree.file(f"{gcc}/{name}")
    for name in ("Scrt1.o", "crti.o", "crtn.o", "libc.so", "libc.so.6", "libc_nonshared.a", "libgcc_s.so.1"):
        tree.file(said_by_gcc(f"-print-file-name={name}"), f"/usr/lib/x86_64-linux-gnu/{name}")
    source = os.path.join(PROGRAMS, "compiler.c")
    headers = said_by_gcc("-O2", "-M", source).replace("\\\n", " ").split(":")[1].split()
    for header in headers[1:]:
        tree.file(os.path.normpath(header))
    own(tree, "compiler.c", "/srv/part.c")
    own(tree, "compiler.mk", "/srv/Makefile")
    own(tree, "compiler.sh", "/srv/start", 0o755)
    return ["CMD [\"/srv/start\"]"], tree


def said_by_gcc(*arguments):
    return subprocess.run(["/usr/bin/gcc", *arguments], stdout=subprocess.PIPE, text=True, check=True,
                          timeout=30).stdout.strip()


UNITS = ("basic.target", "sysinit.target", "sockets.target", "timers.target", "paths.target", "slices.target",
         "local-fs.target", "swap.target", "shutdown.target", "umount.target", "final.target", "exit.target",
         "systemd-exit.service", "systemd-journald.service", "systemd-journald.socket",
         "systemd-journald-dev-log.socket")


def systemd():
    tree = base()
    for name in ("systemd", "systemd-journald", "systemd-shutdown"):
        tree.program(f"/lib/systemd/{name}")
    tree.program("/bin/systemctl")
    for name in UNITS:
        tree.file(f"/lib/systemd/system/{name}")
    with open(os.path.join(PROGRAMS, "systemd.units"), encoding="utf-8") as f:
        for unit in f.read().split("#### ")[1:]:
            name, text = unit.split("\n", 1)
            tree.text(f"/etc/systemd/system/{name}", text)
    tree.text("/etc/machine-id", "")
    tree.text("/etc/os-release", "ID=ferry-lab\n")
    resolver(tree)
    return ["ENV container=docker", "CMD [\"/lib/systemd/systemd\"]"], tree


RECIPES = {
    "postgres": (postgres, ["busybox-static", "postgresql-15", "postgresql-client-15", "tzdata"]),
    "mariadb": (mariadb, ["busybox-static", "mariadb-server-core"]),
    "memcached": (memcached, ["busybox-static", "memcached"]),
    "node": (node, ["busybox-static", "nodejs"]),
    "java": (java, ["busybox-static", "openjdk-17-jre-headless"]),
    "tmux": (tmux, ["busybox-static", "tmux", "vim-tiny", "ncurses-base"]),
    "sshd": (sshd, ["busybox-static", "openssh-server"]),
    "compiler": (compiler, ["busybox-static", "make", "gcc", "gcc-12", "cpp-12", "binutils", "libc6-dev"]),
    "systemd": (systemd, ["busybox-static", "systemd"]),
}
