"""One training job on several devices: a process for each, on this machine or on all nodes of a SLURM job.

The job's own process reads the tables and opens the log, then starts the others, waits, and fails if one of them does.
None of them runs the rule's script again: they are handed a pickled call. So they need neither Snakemake's temporary
copy of the script nor a way to guess from SLURM's variables how they were started.
"""

import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import torch.distributed as dist

from fieldmark.artifacts import write_atomically
from fieldmark.hardware import Hardware
from fieldmark.stage import log

ROOT = Path(__file__).resolve().parent.parent
GRACE = 10.0  # seconds between asking a process to end and killing it


class ProcessError(RuntimeError):
    """One of a job's processes failed; names it and tells why."""


def run_on_all_devices(work: Callable[[], None], hardware: Hardware, folder: Path) -> None:
    """Call ``work`` once in each of ``hardware.processes`` new processes, and wait for all of them.

    Args:
        work: what to call; a partial of a module's function, so that it can be pickled.
        hardware: how many nodes, and devices on each. More than one node needs a SLURM job that holds them.
        folder: where the pickled call and the processes' last words lie meanwhile; all nodes must see it.

    Raises:
        ProcessError: if a process ends with an error or is killed; the others are ended first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        _run(work, hardware, folder)
    finally:
        shutil.rmtree(folder)


def _run(work: Callable[[], None], hardware: Hardware, folder: Path) -> None:
    write_atomically(folder / "call.pickle", lambda path: path.write_bytes(pickle.dumps(work)))
    address = socket.gethostname() if hardware.nodes > 1 else "127.0.0.1"
    # The store is where processes find each other. Here it outlives each of them and takes a port that is free.
    store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": str(hardware.decode_threads),
        "WORLD_SIZE": str(hardware.processes),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": str(True),
    }
    with _started(_commands(hardware, folder, environment)) as started:
        log.info("started %d processes on %d nodes", hardware.processes, hardware.nodes)
        codes: SimpleQueue[int] = SimpleQueue()

        def watch(process: subprocess.Popen[bytes]) -> None:
            codes.put(process.wait())

        for process in started:
            threading.Thread(target=watch, args=[process], daemon=True).start()
        # Until all are through, or one of them fails, whichever that is.
        any(codes.get() for _ in started)
        failed = [number for number, process in enumerate(started) if process.returncode]
    if failed:
        raise ProcessError(_reason(failed, started, hardware, folder))


def is_first_process() -> bool:
    """Whether this process writes what all of them have made; true also of one that is alone."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _commands(hardware: Hardware, folder: Path, environment: dict[str, str]) -> list[tuple[list[str], dict[str, str]]]:
    """Command lines with their environments: one per process here, or srun, which starts them on all nodes."""
    own = [sys.executable, "-m", "fieldmark.processes", str(folder.resolve())]
    if hardware.nodes == 1:
        # gloo would look the machine's name up, which need not lead anywhere; NCCL finds its ways inside a machine.
        here = {**environment, "GLOO_SOCKET_IFNAME": "lo"}
        ranks = range(hardware.processes)
        return [(own, {**here, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}) for rank in ranks]
    srun = ["srun", f"--nodes={hardware.nodes}", f"--ntasks-per-node={hardware.devices}"]
    srun += [f"--ntasks={hardware.processes}", f"--cpus-per-task={hardware.decode_threads}", "--cpu-bind=none"]
    # What the job asked for, one task on each node, would be taken for this step's own limits.
    needed = ("SLURM_JOB_ID", "SLURM_CONF")
    free = {key: value for key, value in environment.items() if not key.startswith("SLURM_") or key in needed}
    return [([*srun, "--overlap", "--kill-on-bad-exit=1", "--input=all", *own], free)]


@contextmanager
def _started(commands: list[tuple[list[str], dict[str, str]]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes of some commands; when the block is left, however that comes about, all of them have ended."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command, environment in commands:
            started.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))
        yield started
    finally:
        for process in started:
            # A process that still runs sees the end of its input, and ends: see _end_with_parent.
            assert process.stdin is not None
            process.stdin.close()
        for process in started:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _reason(failed: list[int], started: list[subprocess.Popen[bytes]], hardware: Hardware, folder: Path) -> str:
    """Which process failed first, and of what. The others then fail as well, because it no longer answers."""
    words = sorted(folder.glob("error.*"), key=lambda path: path.stat().st_mtime_ns)
    killed = [number for number in failed if started[number].returncode < 0]
    if killed and hardware.nodes == 1:
        name = signal.Signals(-started[killed[0]].returncode).name
        return f"process {killed[0]} of {hardware.processes} was killed by {name}; for want of memory, perhaps (mem_mb)"
    if words:
        return f"process {words[0].suffix[1:]} of {hardware.processes}: {words[0].read_text(encoding='utf-8')}"
    first = failed[0] if hardware.nodes == 1 else "srun"
    return f"process {first} of {hardware.processes} ended with exit code {started[failed[0]].returncode}; see the log"


def _end_with_parent() -> None:
    """End this process when the job's own is gone, or wants it gone: it holds the other end of standard input."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main(folder: Path) -> None:
    """Be one of the processes: call what lies in ``folder``, and leave last words there if it fails."""
    _end_with_parent()
    for name, given in (("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID"), ("GROUP_RANK", "SLURM_NODEID")):
        os.environ.setdefault(name, os.environ.get(given, ""))
    rank = int(os.environ["RANK"])
    # What all do alike is told once; a warning may concern one process alone.
    level, prefix = (logging.INFO, "") if rank == 0 else (logging.WARNING, f"process {rank}: ")
    logging.basicConfig(format=f"%(asctime)s %(levelname)s {prefix}%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    logging.getLogger().handlers[0].setLevel(level)
    try:
        pickle.loads((folder / "call.pickle").read_bytes())()
    except BaseException as error:  # noqa: BLE001 (whatever it is, the process ends of it)
        words = f"{type(error).__name__}: {error}"
        write_atomically(folder / f"error.{rank}", lambda path: path.write_text(words, encoding="utf-8"))
        traceback.print_exc()
        sys.stderr.flush()
        # Without the end of the interpreter, which may wait for the other processes.
        os._exit(1)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
