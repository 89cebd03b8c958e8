"""Trains a run, or goes on with it: one config, one command, a student that matches its teacher.

  python -m big_distill.main --config=configs/digits_fm.py
  python -m big_distill.main --config=configs/flowers_fm.py:variant=long --data_dir=/data/tfds --workdir=/runs/flowers
  python -m big_distill.main --config=configs/mnist_kd.py --config.total_epochs=2 --config.objective.temperature=5
  python -m big_distill.main --config=configs/imagenet_fm.py:smoke      (shrunk, on random pixels, in a minute)

The same command again resumes, bit-exactly, from the newest checkpoint: the run directory is named after the config
and a hash of all that changes what is computed. SIGTERM and Ctrl-C save first (exit status 75). A mistake in the
config is one line (exit status 2).

Any field is set as --config.FIELD=VALUE: --config.student.features='(16,32)' for several values, '()' for none, and
--config.source.validation= unsets a name. The teacher's own config has the same fields under config.teacher.config;
its data are the student's unless set apart. --config.teacher.path=RUN takes the place of that whole config.

Fields of the config, each with its type and its kind: maths (a resumed run refuses another value), numerics (it goes
on, no longer bit-exactly) or cosmetic:

"""

from __future__ import annotations

import os
import pathlib
import sys
import time
from typing import Any

import jax
from absl import flags

from big_distill import cli
from big_distill.config import describe_fields, fingerprint
from big_distill.errors import BigDistillError, ConfigError
from big_distill.preemption import leave_on_signals
from big_distill.resolve import resolve

_LAST_SECONDS = 3  # process 0 leaves after those that fail alike: it holds what connects them


def define_flags() -> None:
    """Defines the flags: not on import, so that one process can import several commands."""
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "Run directory; default runs/<config>-<fingerprint>.")
    flags.DEFINE_string("data_dir", None, "Where TFDS sets are. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.")
    flags.DEFINE_bool("distributed", False, "Several processes, on a cluster that JAX knows (TPU pods, SLURM, ...).")
    flags.DEFINE_string("coordinator", None, "Several processes elsewhere: HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", None, "With --coordinator: how many.")
    flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is, from 0.")
    flags.DEFINE_integer("peer_timeout_seconds", 100, "Several processes: leave when one was not heard of for so long.")


def main() -> None:
    """Reads the flags, trains, prints the closing table."""
    leave_on_signals()
    args = flags.FLAGS
    if args.workdir and "://" in args.workdir:
        raise ConfigError(
            f"--workdir={args.workdir}: expected a directory; mount the bucket (gcsfuse) and name the mount"
        )
    if args.distributed or args.coordinator:
        _start_distributed()
    config_dict = cli.config_value()
    if args.data_dir:
        config_dict.source.data_dir = args.data_dir
    config = resolve(config_dict, jax.device_count(), jax.default_backend())
    workdir = pathlib.Path(args.workdir or f"runs/{cli.config_path().stem}-{fingerprint(config)}")
    from big_distill.train import train_and_evaluate  # here, so that --help and mistakes in the config answer at once

    try:
        summary = train_and_evaluate(config, workdir)
    except BigDistillError as error:
        if jax.process_count() > 1:
            _leave(error)
        raise
    if jax.process_index() == 0:
        print(closing_table(summary, workdir))


def _start_distributed() -> None:
    args = flags.FLAGS
    given = (args.coordinator, args.num_processes, args.process_id)
    if args.coordinator and None in given:
        raise ConfigError("--coordinator needs --num_processes and --process_id too")
    try:
        jax.distributed.initialize(
            **dict(zip(("coordinator_address", "num_processes", "process_id"), given, strict=True)),
            heartbeat_timeout_seconds=args.peer_timeout_seconds,
            shutdown_timeout_seconds=args.peer_timeout_seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"jax.distributed did not start ({error}); where JAX cannot find its cluster by itself, give "
            "--coordinator=HOST:PORT, --num_processes and --process_id"
        ) from error


def _leave(error: BigDistillError) -> None:
    """Ends one of several processes: at a usual exit jax.distributed would wait for all, and end in SIGABRT."""
    print(f"big_distill: {error}", file=sys.stderr, flush=True)
    if jax.process_index() == 0:
        time.sleep(_LAST_SECONDS)
    os._exit(error.exit_status)


def closing_table(summary: dict[str, Any], workdir: pathlib.Path) -> str:
    """What a finished run comes to, for people."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

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
