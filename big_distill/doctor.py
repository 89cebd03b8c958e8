"""Says what a run directory holds, what of it verifies, and what the same command would do with it; changes nothing.

  python -m big_distill.doctor --workdir=runs/digits_fm-0123456789ab
  python -m big_distill.doctor --workdir=... --json

Checksums of checkpoints, weights and packed files are verified, JSON is read; the runs inside it (teacher/, init/) are
looked at, too. Exit status 0 if everything verifies, 4 if not.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

from absl import flags

from big_distill import cli
from big_distill.errors import ConfigError, RunError
from big_distill.reporting.diagnosis import Diagnosis, examine


def define_flags() -> None:
    """Defines the flags: not on import, so that one process can import several commands."""
    flags.DEFINE_string("workdir", None, "The run directory.")
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def main() -> None:
    """Reads the flags, examines, prints a table or JSON."""
    args = flags.FLAGS
    if not args.workdir:
        raise ConfigError("--workdir=DIR is needed: a run directory")
    found = examine(pathlib.Path(args.workdir))
    if args.json:
        print(json.dumps({**dataclasses.asdict(found), "verified": found.verified}, indent=2, default=str))
    else:
        print(report(found))
    if not found.verified:
        sys.exit(RunError.exit_status)


def report(found: Diagnosis) -> str:
    """A run and those inside it, one finding a line, with what the same command would do at the end."""
    of = f" of {found.total_steps:,}" if found.total_steps else ""
    lines = [f"{found.workdir}: {found.status}, step {found.step:,}{of}"]
    width = max((len(finding.name) for finding in found.findings), default=0)
    for finding in found.findings:
        lines.append(f"  {finding.name:{width}}  {'ok     ' if finding.verified else 'DAMAGED'}  {finding.detail}")
    lines.append(f"  The same command {found.outlook}.")
    return "\n\n".join(["\n".join(lines), *map(report, found.inner)])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
