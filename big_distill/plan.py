"""Plans a run on a machine that is not there: compiles its very steps for it, and says what they take.

  python -m big_distill.plan --config=configs/flowers_fm.py:variant=medium --topology=v5e:2x4
  python -m big_distill.plan --config=configs/flowers_fm.py --topology=v5e:2x4 --price=1.2 --compare=v6e:2x4,v5e:4x4
  python -m big_distill.plan --config=configs/pets_fm.py --topology=v5e:2x4 --compare=configs/flowers_fm.py:variant=fast
  python -m big_distill.plan --config=configs/flowers_fm.py --topology=v5e:2x4 --batches=16,32,64,128
  python -m big_distill.plan --config=configs/digits_fm.py --topology=cpu --json

Needs neither data, weights, network nor accelerator: for TPUs libtpu compiles (pip install 'big_distill[tpu]'), a
minute for a small network, some for a large one. A topology is v2, v3, v4, v5e, v5p, v6e or tpu7x with a shape (4x4;
2x2x1 for v4, v5p and tpu7x), or `cpu` or `cpu:8` for this machine, of which only sizes and counts are known.

Times are rooflines: what arithmetic, memory or interconnect take at the chip's peak, whichever is longest. No step is
faster; a real one is slower. Hours and cost are of training steps alone, of every network that the config trains. The
largest batch that fits is an estimate: on the line through the two largest of --batches, or else as if all but state
and teacher grew with the batch. A teacher that is not here is planned by config.teacher.model, or by its name. Any
field of the config is set as in big_distill.main: --config.batch_size=1024.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, cast

import jax
from absl import flags

from big_distill import chips, cli
from big_distill.config_files import load_config
from big_distill.costs import Cost
from big_distill.errors import ConfigError
from big_distill.planning import Plan, Stage, plan
from big_distill.resolve import resolve


def define_flags() -> None:
    """Defines the flags: not on import, so that one process can import several commands."""
    cli.define_config_flag()
    flags.DEFINE_string("topology", None, "What to plan for: v5e:2x4, v6e:2x2, v4:2x2x1, cpu, cpu:8, ...")
    flags.DEFINE_list("compare", [], "Other topologies, and other config files, to put beside it.")
    flags.DEFINE_list("batches", [], "Images a chip and step, to compile the student's step with, too: 16,32,64.")
    flags.DEFINE_float("price", None, "US dollars a chip-hour.")
    flags.DEFINE_bool("eval", True, "Compile the evaluation steps, too.")
    flags.DEFINE_string("dump_hlo", None, "Keep the text of the student's compiled train step in this file.")
    flags.DEFINE_bool("json", False, "Print JSON instead of a table: of --compare a list.")


def main() -> None:
    """Reads the flags, compiles, prints a table or JSON."""
    args = flags.FLAGS
    if not args.topology:
        raise ConfigError("--topology=SLICE is needed: v5e:2x4, v6e:2x2, v4:2x2x1, cpu, ...")
    config_dict, flag = cli.config_value(), cast(Any, args["config"])
    name = _name(*flag.config_filename.partition(":")[::2])
    if not all(batch.strip().isdecimal() for batch in args.batches):
        raise ConfigError(f"--batches={','.join(args.batches)}: expected numbers of images a chip, such as 16,32,64")
    if args.dump_hlo and not pathlib.Path(args.dump_hlo).absolute().parent.is_dir():
        raise ConfigError(f"--dump_hlo={args.dump_hlo}: its directory does not exist")
    wanted = [(name, config_dict, args.topology)]
    for other in args.compare:
        path, _, arg = other.partition(":")
        if path.endswith(".py"):
            wanted.append((_name(path, arg), load_config(path, arg), args.topology))
        else:
            wanted.append((name, config_dict, other))
    _only_cpus([topology for _, _, topology in wanted])
    batches = [int(batch) for batch in args.batches]
    plans = [_plan(*one, batches=() if index else batches) for index, one in enumerate(wanted)]
    if args.dump_hlo:
        pathlib.Path(args.dump_hlo).write_text(plans[0].hlo)
    if args.json:
        found = [one.to_json(args.price) for one in plans]
        print(json.dumps(found if args.compare else found[0], indent=2))
    else:
        print(report(plans, args.price))


def _name(path: str, arg: str) -> str:
    return f"{pathlib.Path(path).stem}:{arg}".rstrip(":")


def _only_cpus(topologies: list[str]) -> None:
    """Keeps JAX from looking for accelerators, and makes as many CPU devices as are wanted."""
    jax.config.update("jax_platforms", "cpu")
    counts = [int(count) for kind, _, count in (t.partition(":") for t in topologies) if count.isdecimal()]
    if counts and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", max(counts))


def _plan(name: str, config_dict: Any, topology: str, batches: Sequence[int]) -> Plan:
    where = chips.open_slice(topology)
    config = resolve(config_dict, len(where.devices), where.platform)
    return plan(name, config, where, batches, flags.FLAGS.eval)


def report(plans: list[Plan], price: float | None) -> str:
    """Plans side by side, the batches of the first, and what there is to say of them."""
    lines = [_heading(one) for one in plans]
    lines += ["", table(plans, price)]
    if plans[0].batches:
        lines += ["", batches_table(plans[0])]
    remarks = [(one, stage, "note", note) for one in plans for stage in one.stages for note in stage.notes]
    remarks += [(one, stage, "warning", text) for one in plans for stage in one.stages for text in stage.warnings]
    remarks += [
        (one, stage, "warning", f"the compiler finds no room: {cost.refused}")
        for one in plans
        for stage in one.stages
        for cost in (stage.train, stage.evaluation)
        if cost and cost.refused
    ]
    if remarks:
        lines.append("")
    for one, stage, kind, text in remarks:
        lines.append(f"{kind}: {f'{one.config} on {one.slice.name}, ' if len(plans) > 1 else ''}{stage.name}: {text}")
    return "\n".join(lines)


def _heading(one: Plan) -> str:
    chip, where = one.slice.chip, one.slice
    if not chip.flops:
        return f"{one.config} on {where.name}: this machine, of whose speed nothing is known"
    cores = " in two cores" if where.devices_per_chip > 1 else ""
    return (
        f"{one.config} on {where.name}: {where.num_chips} x {chip.flops / 1e12:,.0f} TFLOP/s (bfloat16){cores}, "
        f"{chip.memory / 1e9:.1f} GB at {chip.bandwidth / 1e9:,.0f} GB/s"
    )


def table(plans: list[Plan], price: float | None) -> str:
    """A column for every network that is trained, on each slice."""
    columns = [(one, stage) for one in plans for stage in one.stages]
    several = len({one.slice.name for one in plans}) > 1, len({one.config for one in plans}) > 1

    def title(one: Plan, stage: Stage) -> str:
        return " ".join([stage.name, *([one.slice.name] * several[0]), *([one.config] * several[1])])

    rows = [["a chip and step", *(title(*column) for column in columns)]]

    def row(name: str, cells: list[str]) -> None:
        if any(cell != "-" for cell in cells):
            rows.append([name, *cells])

    each = [stage for _, stage in columns]
    row("images", [f"{stage.batch_per_chip:,}" for stage in each])
    known = any(one.slice.chip.memory for one in plans)
    row("fits" if known else "needs", [_fits(one, stage) for one, stage in columns])
    for name in ("argument", "temp", "output", "code"):
        label = {"argument": "arguments", "temp": "temporaries", "output": "outputs", "code": "program"}[name]
        row(f"  {label}", [_bytes(getattr(stage.train, f"{name}_bytes")) for stage in each])
    row("  evaluation needs", ["-" if s.evaluation_bytes is None else _bytes(s.evaluation_bytes) for s in each])
    row("largest batch (estimate)", ["-" if s.largest_batch is None else f"{s.largest_batch:,}" for s in each])
    row("FLOPs", [_timed(_flops(stage.train.flops), stage.train, "arithmetic") for stage in each])
    row("  of them int8", [_flops(s.train.int8_flops) if s.train.int8_flops else "-" for s in each])
    row("HBM traffic", [_timed(_bytes(stage.train.hbm_bytes), stage.train, "memory") for stage in each])
    for kind in sorted({kind for stage in each for kind in stage.train.collective_bytes}):
        row(kind, [_bytes(stage.train.collective_bytes.get(kind, 0)) for stage in each])
    row("interconnect", [_timed("", stage.train, "interconnect") for stage in each])
    row("roofline", [_timed("", stage.train, stage.train.bound_by or "") for stage in each])
    row("bound by", [stage.train.bound_by or "-" for stage in each])
    row("host to device", [_bytes(stage.host_bytes_per_step) for stage in each])
    row("compiled in", [f"{stage.train.compile_seconds:,.0f} s" for stage in each])
    rows.append(["the whole run", *("" for _ in each)])
    row("images/s, at most", [f"{stage.images_per_second:,.0f}" if stage.images_per_second else "-" for stage in each])
    row("steps", [f"{stage.total_steps:,}" for stage in each])
    row("hours, at least", [f"{stage.total_hours:,.2f}" if stage.total_hours is not None else "-" for stage in each])
    if price is not None:
        costs = [s.total_hours and s.total_hours * s.num_chips * price for s in each]
        row("US dollars, at least", [f"{cost:,.2f}" if cost is not None else "-" for cost in costs])
    row("evaluation, a batch", [_evaluation(stage) for stage in each])
    row("images from the host", [_bytes(s.host_bytes_per_step * s.num_chips * s.total_steps) for s in each])
    row("checkpoint", [_bytes(stage.checkpoint_bytes) for stage in each])
    row("  kept, at most", [_bytes(stage.checkpoint_bytes * stage.kept_checkpoints) for stage in each])
    text = cli.aligned(rows)
    totals = []
    for one in plans:
        if len(one.stages) > 1 and one.total_hours is not None:
            money = "" if price is None else f", {one.cost(price):,.2f} US dollars"
            totals.append(f"all networks on {one.slice.name}: {one.total_hours:,.2f} hours{money}, at least")
    return "\n".join([text, *totals])


def batches_table(one: Plan) -> str:
    """How the student's step changes with its batch."""
    student = one.student
    costs = sorted({**one.batches, student.batch_per_chip: student.train}.items())
    rows = [["images a chip", "fits", "needs", "temporaries", "FLOPs/image", "HBM/image", "roofline/image", "bound by"]]
    for batch, cost in costs:
        seconds = cost.roofline_seconds
        rows.append(
            [
                f"{batch:,}",
                "yes" if cost.fits else "no",
                _bytes(cost.total_bytes),
                _bytes(cost.temp_bytes),
                _flops(cost.flops / batch),
                _bytes(cost.hbm_bytes // batch),
                _time(seconds / batch) if seconds else "-",
                cost.bound_by or "-",
            ]
        )
    return cli.aligned(rows)


def _fits(one: Plan, stage: Stage) -> str:
    memory = one.slice.chip.memory
    needed = _bytes(stage.train.total_bytes)
    return f"{'yes' if stage.fits else 'NO'}, {needed} of {memory / 1e9:.1f} GB" if memory else needed


def _timed(what: str, cost: Cost, kind: str) -> str:
    seconds = cost.seconds.get(kind)
    time = _time(seconds) if seconds is not None else ""
    return " = ".join(filter(None, (what, time))) or "-"


def _evaluation(stage: Stage) -> str:
    if stage.evaluation is None or stage.evaluation.roofline_seconds is None:
        return "-"
    return f"{stage.eval_batch_size:,} in {_time(stage.evaluation.roofline_seconds)}"


def _time(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{_prefixed(1e9 * seconds, ('ns', 'us', 'ms'))}"


def _flops(count: float) -> str:
    return _prefixed(count, ("", "K", "M", "G", "T"))


def _bytes(count: float) -> str:
    return _prefixed(count, ("B", "KB", "MB", "GB", "TB", "PB"))


def _prefixed(count: float, units: tuple[str, ...]) -> str:
    """Three or four digits and a unit, each a thousand times the one before."""
    power = 0
    while count >= 999.5 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    digits = 0 if count >= 99.95 or not power else 1 if count >= 9.995 else 2
    return f"{count:,.{digits}f} {units[power]}".rstrip()


if __name__ == "__main__":
    define_flags()
    cli.run(main)
