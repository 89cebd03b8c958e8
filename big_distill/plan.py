"""Plans a run on a machine that is not there: compiles its steps for it, and says what time and memory they take.

  python -m big_distill.plan --config=configs/flowers_fm.py:variant=medium --topology=v5e:2x4
  python -m big_distill.plan --config=configs/flowers_fm.py --topology=v5e:2x4 --price=1.2 --compare=v6e:2x4,v5e:4x4
  python -m big_distill.plan --config=configs/pets_fm.py --topology=v5e:2x4 --compare=configs/flowers_fm.py:variant=fast
  python -m big_distill.plan --config=configs/pets_fm.py --topology=v5e:2x4 --compare='config.batch_size=1024 v6e:2x4'
  python -m big_distill.plan --config=configs/flowers_fm.py --topology=v5e:2x4 --batches=16,32,64,128
  python -m big_distill.plan --config=configs/digits_fm.py --topology=v5e:2x4 --weak_scaling=v5e:8x8,v5e:16x16
  python -m big_distill.plan --config=configs/digits_fm.py --topology=cpu --json

It needs no data, weights, network or accelerator. A topology is
  v5e:2x4     TPUs: v2, v3, v4, v5e, v5p, v6e or tpu7x with a shape (4x4; 2x2x1 for v4, v5p and tpu7x). libtpu compiles
              (pip install 'big_distill[tpu]'), in seconds for a small network, in minutes for a large one
  h100:8      GPUs of one machine: a100 (80 GB), a100-40gb or h100, SXM. XLA compiles (pip install 'big_distill[cuda]').
              Nothing of this has been compared with a GPU. HBM traffic ignores what the L2 cache saves,
              temporaries ignore cuDNN's workspaces, and FLOPs count products alone
  cpu, cpu:8  devices of this machine; only sizes and counts are known

Times are rooflines: the longest of what arithmetic, memory and interconnect take at the chip's peak. No step is faster;
a real one is slower. Hours and cost count training steps alone, of every network that the config trains. The largest
batch that fits is an estimate. It lies on the line through the two largest of --batches, or else assumes that all but
state and teacher grows with the batch. A teacher that is not here is planned by config.teacher.model, or by its name.
--config.batch_size=1024 sets a field of the config, as in big_distill.main, for all that is compared.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any, cast

import jax
from absl import flags

from big_distill import cli
from big_distill.config.fields import meant
from big_distill.errors import ConfigError, RunError
from big_distill.files import atomic
from big_distill.planning import chips, estimate
from big_distill.planning.tables import report
from big_distill.resolve import resolve

_MAX_PRICE = 1e6


def define_flags() -> None:
    """Defines the flags; importing the module does not, so that one process can import several commands."""
    cli.define_config_flag()
    flags.DEFINE_string("topology", None, "Names the machine: v5e:2x4, v6e:2x2, v4:2x2x1, h100:8, cpu, cpu:8, ...")
    flags.DEFINE_multi_string(
        "compare",
        [],
        "Plans others beside it, given by what is different: topologies, or words with spaces between them (a config "
        "file, --config.field=value, a topology). It can be given several times.",
    )
    flags.DEFINE_list("batches", [], "Compiles the student's step with so many images a chip, too: 16,32,64.")
    flags.DEFINE_list("weak_scaling", [], "Compiles the student's step for these slices, too, at equal images a chip.")
    flags.DEFINE_float("price", None, "Price in US dollars a chip-hour.")
    flags.DEFINE_bool("eval", True, "Compiles the evaluation steps, too.")
    flags.DEFINE_string("dump_hlo", None, "Writes the text of the student's compiled train step to this file.")
    flags.DEFINE_alias("dump-hlo", "dump_hlo")
    flags.DEFINE_bool("json", False, "Prints JSON instead of a table; with --compare a list.")


def main() -> None:
    """Reads the flags, compiles and prints a table or JSON."""
    args = flags.FLAGS
    if not args.topology:
        raise ConfigError("--topology=SLICE is needed: v5e:2x4, v6e:2x2, v4:2x2x1, h100:8, cpu, ...")
    try:
        batches = [int(batch) for batch in args.batches]
    except ValueError as error:
        given = ",".join(args.batches)
        raise ConfigError(f"--batches={given}: expected numbers of images a chip, such as 16,32,64") from error
    if args.price is not None and not 0 <= args.price <= _MAX_PRICE:
        raise ConfigError(f"--price={args.price}: expected US dollars a chip-hour, 0 to {_MAX_PRICE:,.0f}")
    dump = pathlib.Path(args.dump_hlo) if args.dump_hlo else None
    if dump:
        _check_writable(dump)
    config_dict, flag = cli.config_value(), cast(Any, args["config"])
    wanted = [(_name(flag.config_filename), config_dict, chips.slice_name(args.topology))]
    wanted += [different for words in args.compare for different in _different(words, *wanted[0])]
    scaled = [chips.slice_name(name, "--weak_scaling") for name in args.weak_scaling]
    _only_cpus([*(topology for *_, topology in wanted), *scaled])
    opened = [
        (name, config, chips.open_slice(topology, "--compare" if index else "--topology"))
        for index, (name, config, topology) in enumerate(wanted)
    ]
    resolved = [(name, resolve(config, len(where.devices), where.platform), where) for name, config, where in opened]
    _, config, where = resolved[0]
    slices = [chips.open_slice(name, "--weak_scaling") for name in scaled]
    estimate.check_batches(config, where, batches)
    estimate.check_slices(where, slices)
    first = estimate.plan(*resolved[0], args.eval)
    if dump:
        _write(dump, first.hlo)
    first = estimate.with_slices(estimate.with_batches(first, config, batches), config, slices)
    plans = [first, *(estimate.plan(*one, args.eval) for one in resolved[1:])]
    if args.json:
        values = [one.to_json(args.price) for one in plans]
        print(json.dumps(values if args.compare else values[0], indent=2, allow_nan=False))
    else:
        print(report(plans, args.price))


def _different(text: str, name: str, config_dict: Any, topology: str) -> list[tuple[str, Any, str]]:
    """Parses one --compare into (name, config, topology) of each plan, given those of the first plan."""
    file, overrides, topologies = "", [], []
    for word in text.split():
        bare = word.lstrip("-")
        if bare.startswith("config."):
            overrides.append(f"--{bare}")
        elif word.partition(":")[0].endswith(".py"):
            file = word
        elif "=" in word:
            raise ConfigError(f"--compare={text}: {_instead_of(word)}")
        else:
            topologies += [chips.slice_name(other, "--compare") for other in word.split(",") if other]
    if not (file or overrides or topologies):
        raise ConfigError("--compare is empty: expected topologies, a config file or --config.field=value")
    if file or overrides:
        config_dict = cli.another_config(file, overrides)
        name = " ".join([_name(file) if file else name, *(word.removeprefix("--config.") for word in overrides)])
    return [(name, config_dict, other) for other in topologies or [topology]]


def _instead_of(word: str) -> str:
    """Says what to write instead of a word of --compare that sets something other than a field of the config."""
    name, _, value = word.lstrip("-").partition("=")
    if name in ("config", "topology"):
        return f"{word!r} goes without its flag here; did you mean {value!r}?"
    near = "".join(f"; did you mean --{field}={value}?" for field in meant(name)[:1])
    return f"{word!r} is no topology, config file or --config.field=value{near}"


def _check_writable(path: pathlib.Path) -> None:
    """Raises ConfigError if --dump-hlo cannot be written."""
    try:
        atomic.check_writable(path)
    except OSError as error:
        raise ConfigError(f"--dump-hlo={path}: cannot be written: {error.strerror}") from error


def _write(path: pathlib.Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise RunError(f"--dump-hlo={path}: {error.strerror}") from error


def _name(filename: str) -> str:
    path, _, arg = filename.partition(":")
    return f"{pathlib.Path(path).stem}:{arg}".rstrip(":")


def _only_cpus(topologies: list[str]) -> None:
    """Keeps JAX from looking for accelerators, and makes as many CPU devices as are wanted."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # JAX caches steps for other devices, but cannot read them
    wanted = max(map(chips.num_cpus, topologies))
    if wanted and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", wanted)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
