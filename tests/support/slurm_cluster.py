"""A real SLURM of one node for tests: packages of Debian, unpacked into a folder and started from there by this user.

Nothing is installed. Names of the daemons are links, because they look at the name by which they were started.
"""

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")

CONF = """\
ClusterName=zoo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
PluginDir={lib}/slurm-wlm
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
MpiDefault=none
KillWait=120
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def unpack(folder):
    """Download SLURM's packages and unpack them. Raises RuntimeError where that is not possible, with the reason."""
    if missing := [name for name in ("apt-get", "dpkg") if shutil.which(name) is None]:
        raise RuntimeError(f"there is no {missing[0]} here")
    debs = folder / "debs"
    (debs / "partial").mkdir(parents=True)
    words = ["install", "-y", "--no-install-recommends", "--download-only", "-o", f"Dir::Cache::archives={debs}"]
    done = subprocess.run(
        ["apt-get", *words, "-o", "Debug::NoLocking=1", *PACKAGES], capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise RuntimeError(f"apt-get: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
    for each in debs.glob("*.deb"):
        subprocess.run(["dpkg", "-x", each, folder], check=True, timeout=60)
    for name in ("slurmctld", "slurmd", "slurmstepd"):
        place = folder / "usr/sbin" / name
        if not place.exists():
            place.symlink_to(f"{name}-wlm")


@contextmanager
def start(root, folder):
    """Start the daemons of a cluster, and give the environment in which its commands run."""
    lib = next((root / "usr/lib").glob("*/slurm-wlm")).parent
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (one, two)]
    facts = {"host": socket.gethostname(), "folder": folder, "lib": lib, "ports": ports, "cpus": os.cpu_count()}
    (folder / "slurm.conf").write_text(CONF.format(user=os.environ.get("USER") or "root", **facts))
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    own = {"LD_LIBRARY_PATH": f"{lib}:{lib / 'slurm-wlm'}", "SLURM_CONF": str(folder / "slurm.conf")}
    environment = {**os.environ, **own, "PATH": f"{root / 'usr/bin'}{os.pathsep}{os.environ['PATH']}"}
    files = [f"--{each}={folder / name}" for each, name in MUNGE.items()]
    with ExitStack() as stack:
        for words in (
            ["munged", "--foreground", "--force", *files],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D", "-d", root / "usr/sbin/slurmstepd"],
        ):
            log = stack.enter_context((folder / f"{words[0]}.log").open("w"))
            started = subprocess.Popen(
                [root / "usr/sbin" / words[0], *words[1:]], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            stack.callback(started.wait, 30)
            stack.callback(started.terminate)
            time.sleep(1)
        wait_for(lambda: "idle" in ask(environment, "sinfo", "-h"), 60, folder)
        yield environment


MUNGE = {
    "key-file": "key",
    "socket": "munge.sock",
    "pid-file": "munged.pid",
    "seed-file": "seed",
    "log-file": "munge.log",
}


def ask(environment, *words):
    """Run a command of SLURM and return its output; an empty one if it fails."""
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60).stdout


def wait_for(happened, seconds, folder):
    """Wait until a condition holds. Raises AssertionError with the ends of the logs if it does not within `seconds`."""
    until = time.monotonic() + seconds
    while not happened():
        logs = "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in Path(folder).glob("*.log"))
        assert time.monotonic() < until, logs
        time.sleep(0.2)
