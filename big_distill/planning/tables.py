"""Writes plans as text: tables and remarks."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator

from big_distill.planning.costs import Cost
from big_distill.planning.plan import Plan, Stage, growth
from big_distill.terminal import aligned


def report(plans: list[Plan], price: float | None) -> str:
    """Writes plans side by side, the batches and slices that the first was tried with, and remarks."""
    parts = ["\n".join(f"{name}{_heading(one)}" for name, one in _named(plans)), table(plans, price)]
    parts += [batches_table(plans[0]) if plans[0].batches else "", slices_table(plans[0]) if plans[0].slices else ""]
    return "\n\n".join(filter(None, [*parts, "\n".join(_remarks(plans))]))


def _named(plans: list[Plan]) -> list[tuple[str, Plan]]:
    """Returns the plans, with names such as 'A: ' if there are several."""
    names = [*string.ascii_uppercase, *map(str, range(27, len(plans) + 1))] if len(plans) > 1 else [""]
    return [(name and f"{name}: ", one) for name, one in zip(names, plans, strict=False)]


def _remarks(plans: list[Plan]) -> Iterator[str]:
    for name, one in _named(plans):
        refused = [(f"--batches={batch}", cost) for batch, cost in one.batches.items()]
        refused += [(f"--weak_scaling={where.name}", cost) for where, cost in one.slices]
        for stage in one.stages:
            yield from (f"note: {name}{stage.name}: {note}" for note in stage.notes)
            yield from (f"warning: {name}{stage.name}: {warning}" for warning in stage.warnings)
            refused += [(stage.name, stage.train)]
            refused += [(f"{stage.name}, evaluation", stage.evaluation)] if stage.evaluation else []
        for what, cost in refused:
            if cost.refused:
                yield f"warning: {name}{what}: the compiler finds no room: {cost.refused}"


def _heading(one: Plan) -> str:
    chip, where = one.slice.chip, one.slice
    if not chip.flops:
        return f"{one.config} on {where.name}: this machine, whose speed is not known"
    cores = " in two cores" if where.devices_per_chip > 1 else ""
    untried = ", not run here" if where.platform == "gpu" else ""
    return (
        f"{one.config} on {where.name}: {where.num_chips} x {chip.flops / 1e12:,.0f} TFLOP/s (bfloat16){cores}, "
        f"{chip.memory / 1e9:.1f} GB at {chip.bandwidth / 1e9:,.0f} GB/s{untried}"
    )


def table(plans: list[Plan], price: float | None) -> str:
    """Writes a table with a column for every network that is trained, in each plan."""
    columns = [(one, stage) for one in plans for stage in one.stages]
    titles = [f"{name}{stage.name}" for name, one in _named(plans) for stage in one.stages]
    rows = [["a chip and step", *titles]]

    def row(name: str, cells: list[str]) -> None:
        if any(cell != "-" for cell in cells):
            rows.append([name, *cells])

    each = [stage for _, stage in columns]

    def figures(name: str, text: Callable[[Cost], str]) -> None:
        row(name, ["-" if stage.train.refused else text(stage.train) for stage in each])

    row("images", [f"{stage.batch_per_chip:,}" for stage in each])
    known = any(one.slice.chip.memory for one in plans)
    row("fits" if known else "needs", [_fits(one, stage) for one, stage in columns])
    figures("  arguments", lambda cost: _bytes(cost.argument_bytes))
    figures("  temporaries", lambda cost: _bytes(cost.temp_bytes))
    figures("  outputs", lambda cost: _bytes(cost.output_bytes))
    figures("  program", lambda cost: _bytes(cost.code_bytes))
    row("  and resident data", [_bytes(stage.resident_bytes) if stage.resident_bytes else "-" for stage in each])
    row("  evaluation needs", ["-" if s.evaluation_bytes is None else _bytes(s.evaluation_bytes) for s in each])
    row("largest batch (estimate)", ["-" if s.largest_batch is None else f"{s.largest_batch:,}" for s in each])
    figures("FLOPs", lambda cost: _timed(_flops(cost.flops), cost, "arithmetic"))
    figures("  of them int8", lambda cost: _flops(cost.int8_flops) if cost.int8_flops else "-")
    figures("HBM traffic", lambda cost: _timed(_bytes(cost.hbm_bytes), cost, "memory"))
    for kind in sorted({kind for stage in each for kind in stage.train.collective_bytes}):
        sizes = [None if stage.train.refused else stage.train.collective_bytes.get(kind, 0) for stage in each]
        row(kind, ["-" if size is None else _bytes(size) for size in sizes])
    figures("sent to other chips", lambda cost: _timed(_bytes(cost.sent_bytes), cost, "interconnect"))
    figures("roofline", lambda cost: _timed("", cost, cost.bound_by or ""))
    figures("bound by", lambda cost: cost.bound_by or "-")
    row("host to device", [_bytes(stage.host_bytes_per_step) for stage in each])
    row("compiled in", [f"{stage.train.compile_seconds:,.0f} s" for stage in each])
    rows.append(["the whole run", *("" for _ in each)])
    row("images/s, at most", [f"{stage.images_per_second:,.0f}" if stage.images_per_second else "-" for stage in each])
    row("steps", [f"{stage.total_steps:,}" for stage in each])
    row("time, at least", ["-" if s.total_hours is None else _duration(3600 * s.total_hours) for s in each])
    if price is not None:
        costs = [s.total_hours and s.total_hours * s.num_chips * price for s in each]
        row("US dollars, at least", ["-" if cost is None else _money(cost) for cost in costs])
    row("evaluation, a batch", [_evaluation(stage) for stage in each])
    row("sent by the host in all", [_bytes(s.host_bytes_per_step * s.num_chips * s.total_steps) for s in each])
    row("checkpoint", [_bytes(stage.checkpoint_bytes) for stage in each])
    row("  kept, at most", [_bytes(stage.checkpoint_bytes * stage.kept_checkpoints) for stage in each])
    text = aligned(rows)
    for name, one in _named(plans):
        if len(one.stages) > 1 and one.total_hours is not None:
            money = "" if price is None else f", {_money(one.total_hours * one.slice.num_chips * price)} US dollars"
            text += f"\n{name}all {len(one.stages)} networks: {_duration(3600 * one.total_hours)}{money}, at least"
    return text


def batches_table(one: Plan) -> str:
    """Writes how the student's step changes with its batch."""
    student = one.student
    costs = sorted({**one.batches, student.batch_per_chip: student.train}.items())
    rows = [["images a chip", "fits", "needs", "temporaries", "FLOPs/image", "HBM/image", "roofline/image", "bound by"]]
    for batch, cost in costs:
        seconds = cost.roofline_seconds
        cells = [
            _bytes(cost.total_bytes),
            _bytes(cost.temp_bytes),
            _flops(cost.flops / batch),
            _bytes(cost.hbm_bytes / batch),
            _time(seconds / batch) if seconds else "-",
            cost.bound_by or "-",
        ]
        rows.append([f"{batch:,}", "yes" if cost.fits else "no", *(["-"] * len(cells) if cost.refused else cells)])
    return aligned(rows)


def slices_table(one: Plan) -> str:
    """Writes how a chip's part of the student's step grows with the slice, at the same batch a chip."""
    train, images = one.student.train, one.student.batch_per_chip
    columns = [(one.slice, train), *one.slices]

    def cell(cost: Cost, name: str, text: str) -> str:
        grown = (growth(train, cost) or {}) if cost is not train else {}
        return "-" if cost.refused else f"{text} ({round(grown[name], 1) + 0:+.1f} %)" if name in grown else text

    rows = [
        ["a chip and step", *(where.name for where, _ in columns)],
        ["chips", *(f"{where.num_chips:,}" for where, _ in columns)],
        ["images", *(f"{images:,}" for _ in columns)],
        ["FLOPs", *(cell(cost, "flops", _flops(cost.flops)) for _, cost in columns)],
        ["HBM traffic", *(cell(cost, "hbm_bytes", _bytes(cost.hbm_bytes)) for _, cost in columns)],
        ["temporaries", *(cell(cost, "temp_bytes", _bytes(cost.temp_bytes)) for _, cost in columns)],
    ]
    for kind in sorted({kind for _, cost in columns for kind in cost.collective_bytes}):
        rows += [[kind, *(cell(cost, kind, _bytes(cost.collective_bytes.get(kind, 0))) for _, cost in columns)]]
    rows += [["roofline", *(_timed("", cost, cost.bound_by or "") for _, cost in columns)]]
    return aligned(rows)


def _fits(one: Plan, stage: Stage) -> str:
    memory = one.slice.chip.memory
    if stage.train.refused:
        return "NO"
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


def _duration(seconds: float) -> str:
    """Writes the time of a whole run in hours, or of a short one in minutes or less."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.2f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else _time(seconds)


def _money(dollars: float) -> str:
    """Writes a price with cents, or below ten cents with two significant digits."""
    exponent = int(f"{dollars:.1e}".partition("e")[2])
    return f"{dollars:,.{max(2, 1 - exponent)}f}"


def _flops(count: float) -> str:
    return _prefixed(count, ("", "K", "M", "G", "T"))


def _bytes(count: float) -> str:
    return _prefixed(count, ("B", "KB", "MB", "GB", "TB", "PB"))


def _prefixed(count: float, units: tuple[str, ...]) -> str:
    """Writes three or four digits and a unit; each unit is a thousand times the one before."""
    power = 0
    while count >= 999.5 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    digits = 0 if count >= 99.95 or not power else 1 if count >= 9.995 else 2
    return f"{count:,.{digits}f} {units[power]}".rstrip()
