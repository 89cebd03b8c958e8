"""Says what a run directory holds, what of it verifies, and what the same command would do. It changes nothing.

  python -m big_distill.doctor --workdir=runs/digits_fm-0123456789ab
  python -m big_distill.doctor --workdir=... --json

It verifies the checksums of checkpoints, weights and packed files, reads the JSON, and examines the runs inside
(teacher/, init/), too. The exit status is 0 if everything verifies, and 4 if not.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from absl import flags

from big_distill import cli
from big_distill.errors import RunError
from big_distill.reporting.diagnosis import Diagnosis, examine
from big_distill.terminal import start_devices


def define_flags() -> None:
    """Defines the flags; importing the module does not, so that one process can import several commands."""
    flags.DEFINE_string("workdir", None, "Names the run directory.")
    flags.DEFINE_bool("json", False, "Prints JSON instead of a table.")


def main() -> None:
    """Reads the flags, examines and prints a table or JSON."""
    start_devices()
    diagnosis = examine(cli.run_directory())
    if flags.FLAGS.json:
        print(json.dumps({**dataclasses.asdict(diagnosis), "verified": diagnosis.verified}, indent=2, default=str))
    else:
        print(report(diagnosis))
    if not diagnosis.verified:
        sys.exit(RunError.exit_status)


def report(diagnosis: Diagnosis) -> str:
    """Says what a run and those inside it hold, one finding a line, and at the end what the same command would do."""
    total = f" of {diagnosis.total_steps:,}" if diagnosis.total_steps else ""
    lines = [f"{diagnosis.workdir}: {diagnosis.status}, step {diagnosis.step:,}{total}"]
    width = max((len(finding.name) for finding in diagnosis.findings), default=0)
    for finding in diagnosis.findings:
        lines.append(f"  {finding.name:{width}}  {'ok     ' if finding.verified else 'DAMAGED'}  {finding.detail}")
    lines.append(f"  The same command {diagnosis.outlook}.")
    return "\n\n".join(["\n".join(lines), *map(report, diagnosis.inner)])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
