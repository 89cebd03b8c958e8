"""Makes the archives beside this file: a checkout of some version writes them, and later versions read them.

  python tests/legacy/make.py CHECKOUT [DIRECTORY]

The kept archives were made by commit a4d7969 (version 0.1.0), the last one before the modules moved into rooms, with
JAX 0.10.2, Flax 0.12.8 and Orbax 0.12.8 on a CPU. They stay valid as long as run directories of version 0.1 must be
readable. Do not make them again with newer code: then they would prove nothing. A format that changes gets an archive
of its own beside these.

  interrupted.tar.xz  the run `distilled`, stopped by SIGTERM at step 6 of 12, before an evaluation that was due
  distilled.tar.xz    the same run to its end, never interrupted; packed in every format, and rounded; scanned
  compressed.tar.xz   an MLP that was pruned, and now shares its weights: a checkpoint with codes
  quantized.tar.xz    a CNN in integers, cut to fewer channels, from a BiT in integers; its first stage had the same
                      teacher
  cpu.txt             the CPU that made them, as `cpu` returns it

Every path in them is relative to runs/NAME, where they are unpacked, but for the temporary directory that Orbax notes
in its commit_success.txt. They leave out files that name the machine: event files, locks, directories of source files.
The runs have one device, and XLA does not optimise, as in the tests of that version.
"""

import lzma
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

HERE = pathlib.Path(__file__).parent
FORMATS = "container,safetensors,tflite,onnx,stablehlo"
STOPPED = 75
_STOP_AFTER_STEP_5 = """
import os, runpy, signal
from orbax.checkpoint import CheckpointManager

save = CheckpointManager.save

def save_and_interrupt(self, step, *args, **kwargs):
    saved = save(self, step, *args, **kwargs)
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    return saved

CheckpointManager.save = save_and_interrupt
runpy.run_module("big_distill.main", run_name="__main__", alter_sys=True)
"""


def main(checkout: pathlib.Path, directory: pathlib.Path = HERE) -> None:
    """Runs the checkout's commands in a new directory and packs what they leave there."""
    env = {
        **os.environ,
        "PYTHONPATH": str(checkout.resolve()),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
        "JAX_HLO_SOURCE_FILE_CANONICALIZATION_REGEX": ".*/",  # a StableHLO file says which lines made it
    }
    with tempfile.TemporaryDirectory(prefix="big_distill-") as scratch:
        shutil.copy(HERE / "digits.py", scratch)

        def python(*args: str, status: int = 0) -> None:
            done = subprocess.run([sys.executable, *args], cwd=scratch, env=env, check=False)
            assert done.returncode == status, f"{args[1]}: exit status {done.returncode}, expected {status}"

        python(
            "-c", _STOP_AFTER_STEP_5, "--config=digits.py:run=distilled", "--workdir=runs/interrupted", status=STOPPED
        )
        for name in ("distilled", "compressed", "quantized"):
            python("-m", "big_distill.main", f"--config=digits.py:run={name}", f"--workdir=runs/{name}")
        python("-m", "big_distill.pack", "--workdir=runs/distilled", f"--formats={FORMATS}")
        python("-m", "big_distill.pack", "--workdir=runs/distilled", "--formats=container,tflite", "--quantize=int8")
        python("-m", "big_distill.sensitivity", "--workdir=runs/distilled", "--shares=0.5")
        python("-m", "big_distill.pack", "--workdir=runs/compressed", "--formats=container")
        python("-m", "big_distill.pack", "--workdir=runs/quantized", "--formats=container,tflite")
        for workdir in sorted(pathlib.Path(scratch, "runs").iterdir()):
            archive(workdir, directory / f"{workdir.name}.tar.xz")
    (directory / "cpu.txt").write_text(cpu())


def cpu() -> str:
    """Returns family, model and vector instructions of this CPU. They decide the last bits; names of CPUs say less."""
    told = pathlib.Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else platform.processor()
    fields = dict(re.findall(r"^(cpu family|model|flags)\s*: (.*)$", told, re.MULTILINE)) or {"model": told}
    fields["flags"] = " ".join(re.findall(r"\b(?:sse|avx|fma|amx)\w*", fields.get("flags", "")))
    return "".join(f"{name}: {value}\n" for name, value in sorted(fields.items()))


def archive(workdir: pathlib.Path, file: pathlib.Path) -> None:
    """Packs a run directory as runs/NAME, without times and owners."""
    with lzma.open(file, "wb", preset=9) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(workdir.rglob("*")):
            if path.is_file() and not path.name.startswith("events.") and path.suffix not in (".lock", ".svg"):
                entry = tarfile.TarInfo(f"runs/{workdir.name}/{path.relative_to(workdir)}")
                entry.size = path.stat().st_size
                with path.open("rb") as data:
                    tar.addfile(entry, data)


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
