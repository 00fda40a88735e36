"""Write a run as a job of SLURM (sbatch), and submit it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import disk
from zoo.errors import ConfigError, ZooError, short
from zoo.jobs.command import Command
from zoo.training.launcher import PATIENCE_OF_TORCHRUN, SlurmLauncher
from zoo.untrusted.printable import quote

if TYPE_CHECKING:
    from zoo.training.settings import Training

SCRIPT = "launch.sbatch"
CPUS_BY_GPU = 4
"""CPUs for each process with a GPU: one computes, one reads rows ahead, and NCCL and copies have threads."""

PATIENCE = 60  # seconds after which sbatch counts as failed


def submit(settings: Training, command: Command, make_folder: Callable[[], Path]) -> int:
    """Write the job script into the run's folder; submit it unless `launcher.submit` is false. Returns exit code 0.
    Raises ConfigError if there is no sbatch, and ZooError if sbatch fails."""
    launcher = settings.launcher
    assert isinstance(launcher, SlurmLauncher)
    if launcher.submit and shutil.which("sbatch") is None:
        raise ConfigError(
            "launcher: is slurm, and there is no sbatch here (launcher.submit=false writes the job alone)"
        )
    folder = make_folder().absolute()
    file = folder / SCRIPT
    words = command.place(folder).list_words()
    disk.write_text(file, "\n".join(write_script(settings, launcher, words, folder)) + "\n")
    if not launcher.submit:
        print(f"{file}: written (`sbatch {shlex.quote(str(file))}` submits it)", file=sys.stderr)
        return 0
    print(f"job {_submit_file(file)}: {folder}", file=sys.stderr)
    return 0


def write_script(settings: Training, launcher: SlurmLauncher, words: list[str], folder: Path) -> Iterator[str]:
    """Yield the lines of the job script. All its submissions have the same torchrun id, so that a job that SLURM
    requeues, or that is submitted again, resumes its run. Raises ConfigError for an option of several lines."""
    options = list(list_options(settings, launcher, folder))
    if broken := next((each for each in options if not each.replace("\t", " ").isprintable()), None):
        raise ConfigError(f"launcher: {quote(broken)} would not be one line of the job's script (plain characters)")
    own = [line for line in launcher.lines if line.startswith("#SBATCH")]
    yield "#!/bin/bash"
    yield from (f"#SBATCH --{option}" for option in options)
    yield from own
    yield ""
    yield f"export {PATIENCE_OF_TORCHRUN}={launcher.warning}"
    yield f"cd {shlex.quote(str(Path.cwd()))} || exit 1"
    yield from (line for line in launcher.lines if line not in own)
    if (cpus := count_cpus(settings, launcher)) is not None:
        yield f"export SRUN_CPUS_PER_TASK={cpus}"  # since SLURM 22.05 srun does not take over sbatch's
        yield f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{max(cpus // (settings.nproc or 1), 1)}}}"'
    run = f"srun {shlex.quote(sys.executable)} -m torch.distributed.run"
    spread = f"--nnodes {settings.nodes} --nproc-per-node {settings.nproc} --max-restarts {settings.restarts}"
    meeting = f'--rdzv-backend c10d --rdzv-endpoint "$(hostname):{launcher.port}" --rdzv-id {uuid.uuid4().hex}'
    yield f"{run} \\\n  {spread} \\\n  {meeting} \\\n  -m zoo {shlex.join(words)}"


def list_options(settings: Training, launcher: SlurmLauncher, folder: Path) -> Iterator[str]:
    """Yield the sbatch options of a run, without `--`."""
    gpus = launcher.gpus if launcher.gpus != "auto" else 0 if is_on_cpu(settings) else settings.nproc
    yield f"job-name={shlex.quote(f'zoo-{folder.name}')}"
    yield f"nodes={settings.nodes}"
    yield "ntasks-per-node=1"  # one torchrun, which starts all processes of its node
    if (cpus := count_cpus(settings, launcher)) is not None:
        yield f"cpus-per-task={cpus}"
    if gpus:
        yield f"gpus-per-node={gpus}"
    for name in ("partition", "account", "time"):
        if (value := getattr(launcher, name)) is not None:
            yield f"{name}={value}"
    yield f"output={shlex.quote(str(folder / 'slurm-%j.log'))}"
    yield "open-mode=append"
    yield "requeue"
    yield f"signal=TERM@{launcher.warning}"


def is_on_cpu(settings: Training) -> bool:
    """Whether a run asks for no GPU."""
    return settings.device.startswith("cpu")


def count_cpus(settings: Training, launcher: SlurmLauncher) -> int | None:
    """Count the CPUs that a job requests on each node; None leaves the number to the cluster. SLURM's own default is
    one CPU for a task."""
    if launcher.cpus != "auto":
        return launcher.cpus
    return (settings.nproc or 1) * (1 if is_on_cpu(settings) else CPUS_BY_GPU)


def _submit_file(file: Path) -> str:
    """Submit a job, and return its number."""
    try:
        done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ZooError(f"{file}: cannot be submitted, sbatch: {short(error)} (run it by hand)") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ZooError(f"{file}: sbatch refused it, found: {said} (launcher.lines=['#SBATCH …'] adds options)")
    return done.stdout.strip().split(";")[0]
