"""Trains or resumes a run: one command makes of one config a student that matches its teacher.

  python -m big_distill.main --config=configs/digits_fm.py
  python -m big_distill.main --config=configs/flowers_fm.py:variant=long --data_dir=/data/tfds --workdir=/runs/flowers
  python -m big_distill.main --config=configs/mnist_kd.py --config.total_epochs=2 --config.objective.temperature=5
  python -m big_distill.main --config=configs/imagenet_fm.py:smoke      (shrunk, on random pixels, in a minute)

The same command again resumes bit-exactly from the newest checkpoint. The run directory is named after the config file
and a hash of all that changes what is computed. If data or networks have moved, the run is found by their content. On
SIGTERM and Ctrl-C the run saves and exits with status 75. A mistake in the config prints one line and exits with status
2.

--config.FIELD=VALUE sets any field. --config.student.features='(16,32)' sets several values, '()' none, and
--config.source.validation= unsets a name. The teacher's own config has the same fields under config.teacher.config; its
data are the student's unless they are set apart. --config.teacher.path=RUN replaces that whole config.

The fields of the config follow, each with its type, its kind and its allowed values. A kind is maths (a resumed run
refuses another value), place (it refuses another content, wherever that lies), numerics (it goes on, but not
bit-exactly) or cosmetic.

"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import socket
import sys
import threading
import time
from typing import Any

import jax
from absl import flags

from big_distill import cli
from big_distill.config import fingerprint
from big_distill.config.fields import describe_fields
from big_distill.errors import BigDistillError, ConfigError, PeerLost
from big_distill.resolve import resolve
from big_distill.terminal import percent, start_devices
from big_distill.training.preemption import leave_on_signals

_LAST_SECONDS = 3  # seconds: process 0 leaves last, because the others are connected through it
_SRUN_SETS = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")  # JAX needs these


def define_flags() -> None:
    """Defines the flags; importing the module does not, so that one process can import several commands."""
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "Names the run directory. Default: runs/<config>-<fingerprint>.")
    flags.DEFINE_string(
        "data_dir", None, "Names the root of the TFDS sets. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."
    )
    flags.DEFINE_bool("distributed", False, "Joins the processes of a cluster that JAX knows (TPU pods, SLURM, ...).")
    flags.DEFINE_string("coordinator", None, "Joins several processes elsewhere: HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0, with --coordinator.", lower_bound=0)
    flags.DEFINE_integer(
        "start_timeout_seconds", 300, "Stops the process if not all processes have met by then.", lower_bound=1
    )
    flags.DEFINE_integer(
        "peer_timeout_seconds", 100, "Stops the process if another one is silent for so long.", lower_bound=1
    )


def main() -> None:
    """Reads the flags, trains and prints the closing table."""
    leave_on_signals()
    args = flags.FLAGS
    if args.workdir and "://" in args.workdir:
        raise ConfigError(
            f"--workdir={args.workdir}: expected a directory; mount the bucket (gcsfuse) and name the mount"
        )
    if args.distributed or (args.coordinator, args.num_processes, args.process_id) != (None, None, None):
        _start_distributed()
    start_devices()
    config_dict = cli.config_value()
    if args.data_dir:
        config_dict.source.data_dir = args.data_dir
    config = resolve(config_dict, jax.device_count(), jax.default_backend())
    from big_distill.training.identity import find
    from big_distill.training.loop import train_and_evaluate

    default = pathlib.Path("runs", f"{cli.config_path().stem}-{fingerprint(config)}")
    try:
        workdir = pathlib.Path(args.workdir) if args.workdir else find(config, default)
        summary = train_and_evaluate(config, workdir)
    except BigDistillError as error:
        if jax.process_count() > 1:
            _leave(error, after_seconds=0 if jax.process_index() else _LAST_SECONDS)
        raise
    if jax.process_index() == 0:
        print(closing_table(summary, workdir))


def _start_distributed() -> None:
    """Connects to the other processes, where the flags place them or else where JAX finds them."""
    args = flags.FLAGS
    _check_cluster_flags()
    # A while later JAX would end in SIGABRT, after a page of C++.
    late = PeerLost(
        f"not all processes have met at {args.coordinator or 'the coordinator that JAX found'} within "
        f"--start_timeout_seconds={args.start_timeout_seconds}: does process 0 run there, and does "
        "every other one run somewhere? The same commands go on"
    )
    timer = threading.Timer(args.start_timeout_seconds, _leave, [late])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            args.coordinator,
            args.num_processes,
            args.process_id,
            initialization_timeout=args.start_timeout_seconds + 60,
            heartbeat_timeout_seconds=args.peer_timeout_seconds,
            shutdown_timeout_seconds=args.peer_timeout_seconds,
        )
    except Exception as error:  # JAX asks variables, name servers, metadata servers and Kubernetes
        raise ConfigError(_no_cluster(error)) from error
    finally:
        timer.cancel()


def _check_cluster_flags() -> None:
    args = flags.FLAGS
    values = {name: args[name].value for name in ("coordinator", "num_processes", "process_id")}
    given = [f"--{name}={value}" for name, value in values.items() if value is not None]
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if given and missing:
        raise ConfigError(f"{' and '.join(given)}: {' and '.join(missing)} must be given too")
    port = re.fullmatch(r".+:(\d{1,5})", args.coordinator or "")
    if given and not (port and 0 < int(port[1]) < 2**16):
        raise ConfigError(f"--coordinator={args.coordinator}: expected HOST:PORT of process 0")
    if given and args.process_id >= args.num_processes:
        raise ConfigError(f"--process_id={args.process_id}: expected 0 to {args.num_processes - 1} (--num_processes)")
    if port and args.process_id == 0:
        _check_port(int(port[1]))


def _check_port(port: int) -> None:
    """Raises ConfigError if process 0 cannot listen on the port. JAX would end in SIGSEGV."""
    try:
        with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=socket.has_dualstack_ipv6()):
            pass
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigError(
                f"--coordinator={flags.FLAGS.coordinator}: port {port}: {os.strerror(error.errno)}"
            ) from error


def _no_cluster(error: Exception) -> str:
    """Says in one line why `jax.distributed` did not start."""
    if flags.FLAGS.coordinator:
        why = f"--coordinator={flags.FLAGS.coordinator}: {error}"
    elif (job := os.environ.get("SLURM_JOB_ID")) and (lacks := [name for name in _SRUN_SETS if name not in os.environ]):
        why = f"--distributed: SLURM job {job} has no {', '.join(lacks)}: start the command with srun"
    elif str(error) == "coordinator_address should be defined.":
        why = "--distributed: JAX finds no cluster here (it knows Cloud TPU, GKE, SLURM, Open MPI and Kubernetes jobs)"
    else:
        why = f"--distributed: JAX finds a cluster here, but cannot join it ({type(error).__name__}: {error})"
    return " ".join(f"{why}; or give --coordinator=HOST:PORT, --num_processes and --process_id".split())


def _leave(error: BigDistillError, *, after_seconds: float = 0) -> None:
    """Ends one of several processes. At a usual exit jax.distributed would wait for all and end in SIGABRT."""
    print(f"big_distill: {error}", file=sys.stderr, flush=True)
    time.sleep(after_seconds)
    os._exit(error.exit_status)


def closing_table(summary: dict[str, Any], workdir: pathlib.Path) -> str:
    """Formats the results of a finished run for people."""
    rows = [("", "accuracy", "parameters")]
    for who in ("teacher", "student"):
        if network := summary[who]:
            rows.append((who, percent(network["accuracy"]), f"{network['num_params']:,}"))
    lines = [f"{name:10}{accuracy:>10}{size:>14}" for name, accuracy, size in rows]
    if summary["kl"] is not None:
        lines.append(f"agreement {percent(summary['agreement'])}, KL(teacher || student) {summary['kl']:.4f} nats")
    rate = summary["images_per_second"]
    lines.append(f"{summary['steps']:,} steps, {rate or 0:,.0f} images/s, {summary['wall_seconds']:,.0f} s")
    return "\n".join(["", *lines, f"run directory: {workdir}"])


if __name__ == "__main__":
    sys.modules["__main__"].__doc__ = f"{__doc__}{describe_fields()}\n"
    define_flags()
    cli.run(main)
