# SPDX-License-Identifier: Apache-2.0
"""`launch=slurm nodes=4 ...` behind a training verb: the command as a job of a cluster, begun again when time is up.

The words of the launch are taken off; what is left is the command that every process of the job runs. submitit writes
the job down with pickle, in a folder of its own that only its own processes read.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opendino.config import check_numbers, load, parse_override
from opendino.errors import ConfigError

if TYPE_CHECKING:
    import submitit

_HANDOVER = 5  # seconds in which process 0 queues the job again, before the end of another process would end it
_LIMITS = {"nodes": (1, 10**5), "processes": (0, 10**3), "gpus": (0, 10**3), "cpus": (1, 10**4), "hours": (0, 10**5)}


@dataclass(frozen=True)
class Launch:
    """Where and how a command is run.

    Attributes:
        launch: "slurm" hands it to the cluster and returns; "local" runs it on this machine and waits.
        nodes: machines.
        processes: on each of them; 0 for one a GPU, or one.
        gpus: of each machine.
        cpus: of each process.
        hours: until the cluster ends the job, which is saved shortly before and queued again.
        requeues: most times that it is queued again for want of time.
        memory: of each machine, GB; 0 leaves it to the cluster.
        partition: of the cluster, as are account, qos and constraint.
        account: see partition.
        qos: see partition.
        constraint: see partition.
        name: of the job.
        logs: folder for what the processes say; `OUTPUT_DIR.jobs` by default.
    """

    launch: Literal["slurm", "local"] = "local"
    nodes: int = 1
    processes: int = 0
    gpus: int = 0
    cpus: int = 1
    hours: float = 24.0
    requeues: int = 100
    memory: int = 0
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    name: str = "opendino"
    logs: str = ""

    def __post_init__(self) -> None:
        check_numbers("launch", vars(self), _LIMITS | {"requeues": (0, 10**5), "memory": (0, 10**6)})
        if self.launch == "local" and self.nodes > 1:
            raise ConfigError(f"nodes = {self.nodes}: launch=local has this machine alone; use launch=slurm")


def taken_off(words: Sequence[str]) -> tuple[Launch | None, list[str]]:
    """The launch among the words of a command, and the words that are left; None where there is no `launch=`.

    Raises:
        ConfigError: a word of the launch has no such value.
    """
    if not any(word.startswith("launch=") for word in words):
        return None, list(words)
    names = {field.name for field in fields(Launch)}
    own = [word for word in words if "=" in word and word.partition("=")[0] in names]
    return load(Launch, None, own), [word for word in words if word not in own]


class Job:
    """What a process of the job runs; submitit asks `checkpoint` for what to queue when time is up.

    Args:
        words: of the command, the verb first.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def __call__(self) -> int:
        """Run the command as one of the processes; its exit code."""
        import submitit

        from opendino.cli.main import main

        # Every process sees all devices of its machine, and takes the one of its local number.
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        code = main(self.words)
        if code == 128 + _out_of_time():
            # Saved. The handler that was there before the run queues the job again, in process 0.
            os.kill(os.getpid(), _out_of_time())
            time.sleep(_HANDOVER)
        return code

    def checkpoint(self) -> Any:  # noqa: ANN401 (a class of submitit's)
        """The same again: the run continues from its checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _out_of_time() -> int:
    return getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")


def submit(launch: Launch, words: Sequence[str]) -> "submitit.Job[int]":
    """Hand a command over.

    Args:
        launch: where to.
        words: of the command, the verb first.

    Raises:
        ConfigError: submitit is not installed, or there is no such cluster here.
    """
    try:
        import submitit
    except ImportError:
        raise ConfigError("launch: submitit is missing; pip install 'opendino[slurm]'") from None
    output = next((parse_override(word)[1] for word in words if word.startswith("output_dir=")), "opendino")
    logs = Path(launch.logs or f"{str(output).rstrip('/')}.jobs")
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=launch.launch, **_retries(launch))
    except RuntimeError as error:
        raise ConfigError(f"launch = {launch.launch}: {error}; is this a machine of the cluster?") from error
    executor.update_parameters(**_parameters(launch))
    return executor.submit(Job(words))


def run(launch: Launch, words: Sequence[str]) -> int:
    """Hand a command over and say where it is; a local one is waited for, and its worst exit code returned."""
    job = submit(launch, words)
    folder = job.paths.folder
    print(
        f"job {job.job_id}: {launch.nodes} x {_processes(launch)} processes; what they say is in {folder}", flush=True
    )
    if launch.launch == "slurm":
        print(f"watch: tail -f {job.paths.stderr}   stop: scancel {job.job_id}   the same command continues")
        return 0
    import submitit

    try:
        return max(job.results())
    except submitit.core.utils.UncompletedJobError as error:
        raise ConfigError(f"job {job.job_id} has ended without a result: {str(error).splitlines()[0]}") from error


def _processes(launch: Launch) -> int:
    return launch.processes or max(launch.gpus, 1)


def _retries(launch: Launch) -> dict[str, int]:
    return {f"{launch.launch}_max_num_timeout": launch.requeues}


def _parameters(launch: Launch) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "nodes": launch.nodes,
        "tasks_per_node": _processes(launch),
        "gpus_per_node": launch.gpus,
        "timeout_min": max(round(launch.hours * 60), 1),
        "name": launch.name,
    }
    if launch.launch == "local":
        return shared
    named = {name: getattr(launch, name) for name in ("partition", "account", "qos", "constraint")}
    slurm = {f"slurm_{name}": value for name, value in named.items() if value}
    memory = {"mem_gb": launch.memory} if launch.memory else {}
    # Two minutes to finish a step and save.
    return shared | memory | {"cpus_per_task": launch.cpus, "slurm_signal_delay_s": 120} | slurm
