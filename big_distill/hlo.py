"""What a compiled program moves, multiplies and sends, read from its text (`compiled.as_text()`).

`compiled.cost_analysis()['bytes accessed']` is not used: it counts every operand and every result, those too that the
compiler keeps in on-chip memory (on a TPU: layouts that end in `S(1)`), so that it is several times the traffic to HBM;
and it counts the body of a loop once. Here the scheduled instructions are added up, a loop's as often as it runs:

* `hbm_bytes`: operands and results that live in memory space 0. A fusion that only slices an operand, or updates a
  slice in place, moves the slice. Aliases (tuples, bitcasts) and the `-done` halves of asynchronous operations move
  nothing; an asynchronous copy moves its HBM side. A conditional counts its dearest branch, a Pallas kernel its
  operands and results; other custom calls nothing.
* `multiplications`: of convolutions and matrix products, by the dtype of their operands.
* `collective_bytes`: the operands of collectives, of an all-gather the result, by kind.

Text of a TPU program does not say how often a loop runs: that is read from its condition, `i < N`, with i from 0, as
`lax.scan` makes it. A loop that cannot be read counts once and is in `unknown_loops`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16} | {
    f"{sign}{bits}": bits // 8 for sign in "su" for bits in (8, 16, 32, 64)
}
_NO_MEMORY = ("parameter", "constant", "iota", "partition-id", "replica-id", "after-all")
_ALIASES = ("tuple", "get-tuple-element", "bitcast")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"(ROOT )?%([\w.\-]+) = (.*)$")
_CALLED = r"%([\w.\-]+)"


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of an instruction's type.

    bytes_: its size, padding not counted.
    in_hbm: False for what stays on the chip.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes_: int
    in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `ROOT %name = result kind(operands), attributes`."""

    name: str
    result: tuple[Array, ...]
    kind: str
    operands: tuple[str, ...]
    arguments: str  # the text between the parentheses
    attributes: str
    is_root: bool

    @property
    def bytes_(self) -> int:
        """Of the result, wherever it is."""
        return sum(array.bytes_ for array in self.result)

    @property
    def hbm_bytes(self) -> int:
        """Of what of the result is in HBM."""
        return sum(array.bytes_ for array in self.result if array.in_hbm)

    def called(self, *attributes: str) -> tuple[str, ...]:
        """The computations that these attributes name."""
        found: list[str] = []
        for attribute in attributes:
            if match := re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes):
                found += re.findall(_CALLED, match[1])
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Move:
    """What an instruction moves between the chip and its memory, in all its runs together."""

    bytes_: int
    times: int
    instruction: Instruction


class Program:
    """A compiled program as its text says."""

    def __init__(self, text: str):
        """Reads the text.

        Raises:
          ValueError: it has no entry computation.
        """
        self._computations, self._entry = _parse(text)

    @functools.cached_property
    def moves(self) -> tuple[Move, ...]:
        """Every scheduled instruction that moves something, dearest first."""
        moves = [move for move in self._moves(self._entry, 1) if move.bytes_]
        return tuple(sorted(moves, key=lambda move: -move.bytes_))

    @property
    def hbm_bytes(self) -> int:
        """Bytes between the chip and its memory."""
        return sum(move.bytes_ for move in self.moves)

    @property
    def unknown_loops(self) -> tuple[str, ...]:
        """Loops that were counted once, because how often they run is not known."""
        loops = (i for body in self._computations.values() for i in body.values() if i.kind == "while")
        return tuple(loop.name for loop in loops if self._trips(loop) is None)

    @functools.cached_property
    def collective_bytes(self) -> dict[str, int]:
        """Bytes that one device has in collectives, by kind such as all-reduce."""
        found: collections.Counter[str] = collections.Counter()
        channels: set[str] = set()  # of those that a TPU runs beside others: the text of each of these has them again
        for times, instruction, body in self._executed(self._entry, 1, once=False):
            kind = instruction.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+).*async_collective_fusion_config", instruction.attributes)
                if channel and channel[1] in channels:
                    continue
                channels |= {channel[1]} if channel else set()
                size = sum(body[name].bytes_ for name in instruction.operands)
                if kind == "all-gather":  # the result of the `-start` half has the operands, too
                    size = instruction.bytes_ - (size if instruction.kind.endswith("-start") else 0)
                found[kind] += times * size
        return dict(found)

    def multiplications(self, *, once: bool = False) -> dict[str, int]:
        """Multiplications of convolutions and matrix products, by the dtype of the left operand.

        Products with padding count, those with the zeros between the pixels of a dilated input do not.

        Args:
          once: counts the bodies of loops once, as `cost_analysis()['flops']` does.
        """
        found: collections.Counter[str] = collections.Counter()
        for times, instruction, body in self._executed(self._entry, 1, once):
            if instruction.kind in ("convolution", "dot"):
                operands = [body[name].result[0] for name in instruction.operands]
                found[operands[0].dtype] += times * _multiplications(instruction, operands)
        return dict(found)

    def _executed(
        self, name: str, times: int, once: bool
    ) -> Iterator[tuple[int, Instruction, Mapping[str, Instruction]]]:
        """(how often, instruction, its computation) of all there is to execute, within fusions too."""
        body = self._computations[name]
        for instruction in body.values():
            yield times, instruction, body
            if instruction.kind == "while":
                trips = 1 if once else self._trips(instruction) or 1
                for inner in instruction.called("body"):
                    yield from self._executed(inner, times * trips, once)
            elif instruction.kind == "conditional":
                yield from self._executed(self._dearest(instruction), times, once)
            elif instruction.kind in ("fusion", "call", "async-start", "custom-call"):
                for inner in instruction.called("calls", "to_apply", "called_computations"):
                    yield from self._executed(inner, times, once)

    def _moves(self, name: str, times: int) -> Iterator[Move]:
        body = self._computations[name]
        for instruction in body.values():
            if instruction.kind == "while":
                for inner in instruction.called("body"):
                    yield from self._moves(inner, times * (self._trips(instruction) or 1))
            elif instruction.kind == "conditional":
                yield from self._moves(self._dearest(instruction), times)
            elif instruction.kind == "call":
                for inner in instruction.called("to_apply"):
                    yield from self._moves(inner, times)
            else:
                yield Move(times * self._moved(instruction, body), times, instruction)

    def _dearest(self, conditional: Instruction) -> str:
        branches = conditional.called("branch_computations", "true_computation", "false_computation")
        return max(branches, key=lambda branch: sum(move.bytes_ for move in self._moves(branch, 1)))

    def _moved(self, instruction: Instruction, body: Mapping[str, Instruction]) -> int:
        """Bytes that one run of an instruction moves."""
        kind, result = instruction.kind, instruction.result
        if (
            kind in (*_NO_MEMORY, *_ALIASES)
            or kind.endswith(("-done", "-update"))
            or (kind == "custom-call" and "tpu_custom_call" not in instruction.attributes)
        ):
            return 0
        operands = [body.get(name) for name in instruction.operands]
        if kind.endswith("-start"):  # (source, destination, ...): a slice moves the smaller one's bytes
            ends = result[:2]
            return min(end.bytes_ for end in ends) * sum(end.in_hbm for end in ends)
        if kind in ("slice", "dynamic-slice"):
            return instruction.hbm_bytes + (instruction.bytes_ if operands[0] and operands[0].hbm_bytes else 0)
        reads: Mapping[int, int | None] = {}
        writes: Sequence[int | None] = ()
        if kind == "fusion":
            reads, writes = self._sliced(instruction.called("calls")[0])
        if len(writes) != len(result):
            writes = (None,) * len(result)
        moved = 0
        for array, part in zip(result, writes, strict=True):
            moved += _at_most(array.bytes_, part) if array.in_hbm else 0
        for index, operand in enumerate(operands):
            moved += _at_most(operand.hbm_bytes, reads.get(index)) if operand else 0
        return moved

    def _sliced(self, name: str) -> tuple[dict[int, int | None], list[int | None]]:
        """Of a fused computation: bytes read of each parameter, and written of each result; None for all of them."""
        body = self._computations[name]
        users: dict[str, list[tuple[Instruction, int]]] = collections.defaultdict(list)
        for instruction in body.values():
            for index, operand in enumerate(instruction.operands):
                users[operand].append((instruction, index))

        def read(instruction: Instruction) -> int | None:
            total = 0
            for user, index in users[instruction.name]:
                part: int | None = None
                if user.kind in ("slice", "dynamic-slice"):
                    part = user.bytes_
                elif user.kind == "bitcast" and not user.is_root:
                    part = read(user)
                elif user.kind == "fusion":
                    part = self._sliced(user.called("calls")[0])[0].get(index)
                elif user.kind == "dynamic-update-slice" and index == 0:
                    part = 0  # in place
                if part is None:
                    return None
                total += part
            return total

        def written(instruction: Instruction) -> int | None:
            while instruction.kind == "bitcast" and instruction.operands[0] in body:
                instruction = body[instruction.operands[0]]
            if instruction.kind != "dynamic-update-slice" or instruction.operands[1] not in body:
                return None
            return body[instruction.operands[1]].bytes_

        root = next((i for i in body.values() if i.is_root), None)
        if root is None:
            return {}, []
        results = [body[operand] for operand in root.operands] if root.kind == "tuple" else [root]
        reads = {int(i.arguments): read(i) for i in body.values() if i.kind == "parameter"}
        return reads, [written(result) for result in results]

    def _trips(self, loop: Instruction) -> int | None:
        """How often a loop runs, if it can be known."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known[1])
        condition = self._computations[loop.called("condition")[0]].values()
        root = next(i for i in condition if i.is_root)
        limits = [i for i in condition if i.kind == "constant" and i.result[0].dtype == "s32" and not i.result[0].shape]
        if root.kind != "compare" or "direction=LT" not in root.attributes or len(limits) != 1:
            return None
        return int(limits[0].arguments)


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """(computations by name, the name of the entry)."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith("}"):
            current = None
        elif line.endswith("{") and "->" in line and (header := re.match(r"(ENTRY )?%([\w.\-]+)", line)):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (instruction := _instruction(line.strip())):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("no entry computation: this is not the text of a compiled program")
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    result, rest = _bracketed(match[3]) if match[3].startswith("(") else match[3].partition(" ")[::2]
    kind = re.match(r"\s*([\w\-]+)(?=\()", rest)
    if not kind:
        return None
    arguments, attributes = _bracketed(rest[kind.end() :])
    return Instruction(
        name=match[2],
        result=_arrays(result),
        kind=kind[1],
        operands=tuple(re.findall(_CALLED, arguments)),
        arguments=arguments[1:-1],
        attributes=attributes,
        is_root=bool(match[1]),
    )


def _bracketed(text: str) -> tuple[str, str]:
    """A text that begins with a parenthesis, split behind the one that closes it."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return text[: match.end()], text[match.end() :]
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


@functools.lru_cache(maxsize=4096)
def _arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, which may be a tuple of them: bf16[8,32]{1,0:T(8,128)S(1)}."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        if dtype in _SIZES:
            shape = tuple(map(int, filter(None, dims.split(","))))
            space = re.search(r"S\((\d+)\)", layout)
            in_hbm = space is None or space[1] == "0"
            found.append(Array(dtype, shape, math.ceil(math.prod(shape) * _SIZES[dtype]), in_hbm))
    return tuple(found)


def _at_most(whole: int, part: int | None) -> int:
    return whole if part is None else min(whole, part)


def _multiplications(instruction: Instruction, operands: Sequence[Array]) -> int:
    left, right = operands[:2]
    outputs = math.prod(instruction.result[0].shape)
    if instruction.kind == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        return outputs * math.prod(left.shape[int(axis)] for axis in filter(None, axes[1].split(",") if axes else ()))
    labels = re.search(r"dim_labels=\w+?_(\w+?)->", instruction.attributes)
    dilation = re.search(r"lhs_dilate=([\dx]+)", instruction.attributes)
    assert labels, f"{instruction.name}: a convolution without dim_labels"
    kernel = math.prod(size for label, size in zip(labels[1], right.shape, strict=True) if label != "o")
    return outputs * kernel // math.prod(map(int, dilation[1].split("x") if dilation else ()))
