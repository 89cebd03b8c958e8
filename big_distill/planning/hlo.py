"""Reads from the text of a compiled step (`compiled.as_text()`) what it moves, multiplies and sends.

`compiled.cost_analysis()['bytes accessed']` is not used. It counts every operand and every result, even those that the
compiler keeps in on-chip memory (on a TPU: layouts that end in `S(1)`), so that it is several times the traffic to HBM.
It also counts the body of a loop once. This module adds up the scheduled instructions, a loop's as often as it runs:

* `hbm_bytes`: operands and results that live in memory space 0. An instruction that only slices an operand, gathers
  rows of it or updates a slice in place moves the slice, in a fusion or alone. Aliases (tuples, bitcasts) and the
  `-done` halves of asynchronous operations move nothing. The results of `-start` halves have the operands in them,
  which count once. A conditional counts its dearest branch. A Pallas kernel, and a call of cuDNN or cuBLAS, counts its
  operands and results; other custom calls count nothing. (A GPU has everything in its memory: it is not known what the
  L2 cache saves.)
* `multiplications`: those of convolutions and matrix products, by the dtype of their operands.
* `collective_bytes`: the operands of collectives (the result of an all-gather), by kind.
* `sent_bytes`: the part of the collectives' bytes that a device sends in a ring.

The text of a TPU's step does not say how often a loop runs. This is read from the loop's counter, which has to begin,
step and end by constants, as `lax.scan` makes it. A loop that cannot be read counts once and is in `unknown_loops`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from big_distill.planning.hlo_loops import Loops
from big_distill.planning.hlo_text import Array, Instruction, parse

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_NO_MEMORY = ("parameter", "constant", "iota", "partition-id", "replica-id", "after-all")
_CALLS = ("fusion", "call", "async-start", "custom-call")
_ALIASES = ("tuple", "get-tuple-element", "bitcast")
_KERNELS = re.compile(r'custom_call_target="(tpu_custom_call"|__cudnn\$|__cublas\$)')
_LIBRARY = re.compile(r'custom_call_target="__(cudnn\$conv|cublas\$)(BackwardInput|BackwardFilter)?')


@dataclasses.dataclass(frozen=True)
class Move:
    """Holds the bytes that an instruction moves between the chip and its memory, in all its runs together."""

    bytes_: int
    times: int
    instruction: Instruction


class Module:
    """Describes an HLO module, which is a compiled step, by its text."""

    def __init__(self, text: str):
        """Reads the text; raises ValueError if it has no entry computation."""
        self._computations, self._entry = parse(text)
        header = text.partition("\n")[0]
        sizes = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
        self._num_devices = math.prod(map(int, sizes))
        self._loops = Loops(self._computations)
        fusions = (i for body in self._computations.values() for i in body.values() if i.kind == "fusion")
        self._fused = {name for fusion in fusions for name in fusion.called("calls")}

    @functools.cached_property
    def moves(self) -> tuple[Move, ...]:
        """Lists every scheduled instruction that moves something, dearest first."""
        moves = [move for move in self._moves(self._entry) if move.bytes_]
        return tuple(sorted(moves, key=lambda move: -move.bytes_))

    @property
    def hbm_bytes(self) -> int:
        """Counts the bytes that move between the chip and its memory."""
        return sum(move.bytes_ for move in self.moves)

    @property
    def unknown_loops(self) -> tuple[str, ...]:
        """Names the loops that were counted once, because it is not known how often they run."""
        loops = ((i, name) for name, body in self._computations.items() for i in body.values() if i.kind == "while")
        return tuple(loop.name for loop, name in loops if self._loops.trips(loop, name) is None)

    @functools.cached_property
    def collective_bytes(self) -> dict[str, int]:
        """Counts the bytes that one device has in collectives, by kind such as all-reduce."""
        sizes: collections.Counter[str] = collections.Counter()
        for kind, size, _ in self._collectives():
            sizes[kind] += size
        return dict(sizes)

    @functools.cached_property
    def sent_bytes(self) -> float:
        """Counts the bytes that one device sends to its neighbour, if collectives go round in rings of their groups."""
        return sum((_sent(kind, group) * size for kind, size, group in self._collectives()), 0.0)

    def _collectives(self) -> Iterator[tuple[str, int, int]]:
        """Yields (kind, bytes in all its runs, devices in a group) of every collective."""
        # A TPU runs some collectives beside other instructions: the text of each of those has the collective again.
        channels: set[str] = set()
        for times, instruction, where in self._executed(self._entry):
            body, kind = self._computations[where], instruction.kind.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            channel = re.search(r"channel_id=(\d+).*async_collective_fusion_config", instruction.attributes)
            if channel and channel[1] in channels:
                continue
            channels |= {channel[1]} if channel else set()
            operands = sum(body[name].bytes_ for name in instruction.operands)
            users = {user.kind for user in body.values() if instruction.name in user.operands}
            if kind == "all-gather":  # the result of the `-start` half also has the operands
                operands = instruction.bytes_ - (operands if instruction.kind.endswith("-start") else 0)
            elif kind == "all-reduce" and where in self._fused and users == {"dynamic-slice"}:  # libtpu writes it so
                kind = "reduce-scatter"
            yield kind, times * operands, _group_size(instruction.attributes) or self._num_devices

    def multiplications(self, *, once: bool = False) -> dict[str, int]:
        """Counts the multiplications of convolutions and matrix products, by the dtype of the left operand.

        Products with padding count; those with the zeros between the pixels of a dilated input do not. The bodies of
        loops count `once`, as in `cost_analysis()['flops']`, or as often as they run.
        """
        counts: collections.Counter[str] = collections.Counter()
        for times, instruction, where in self._executed(self._entry, once=once):
            if instruction.kind in ("convolution", "dot") or _LIBRARY.search(instruction.attributes):
                body = self._computations[where]
                operands = [body[name].result[0] for name in instruction.operands]
                counts[operands[0].dtype] += times * _multiplications(instruction, operands)
        return dict(counts)

    def _executed(
        self, name: str, times: int = 1, *, once: bool = False, calls: Sequence[str] = _CALLS
    ) -> Iterator[tuple[int, Instruction, str]]:
        """Yields (how often, instruction, its computation's name) of all that is executed, within `calls` too."""
        for instruction in self._computations[name].values():
            yield times, instruction, name
            if instruction.kind == "while":
                trips = None if once else self._loops.trips(instruction, name)
                for inner in instruction.called("body"):
                    runs = times if trips is None else times * trips
                    yield from self._executed(inner, runs, once=once, calls=calls)
            elif instruction.kind == "conditional":
                yield from self._executed(self._dearest(instruction), times, once=once, calls=calls)
            elif instruction.kind in calls:
                for inner in instruction.called("calls", "to_apply", "called_computations"):
                    yield from self._executed(inner, times, once=once, calls=calls)

    def _moves(self, name: str) -> Iterator[Move]:
        for times, instruction, where in self._executed(name, calls=("call",)):
            if instruction.kind not in ("while", "conditional", "call"):
                yield Move(times * self._moved(instruction, self._computations[where]), times, instruction)

    def _dearest(self, conditional: Instruction) -> str:
        branches = conditional.called("branch_computations", "true_computation", "false_computation")
        return max(branches, key=lambda branch: sum(move.bytes_ for move in self._moves(branch)))

    def _moved(self, instruction: Instruction, body: Mapping[str, Instruction]) -> int:
        """Counts the bytes that one run of an instruction moves."""
        kind, result = instruction.kind, instruction.result
        if (
            kind in (*_NO_MEMORY, *_ALIASES)
            or kind.endswith(("-done", "-update"))
            or (kind == "custom-call" and not _KERNELS.search(instruction.attributes))
        ):
            return 0
        operands = [body.get(name) for name in instruction.operands]
        if kind.endswith("-start"):
            result = _without_operands(instruction, operands)
        size = sum(array.bytes_ for array in result)
        reads: Mapping[int, int | None] = {}
        writes: Sequence[int | None] = ()
        match kind.removesuffix("-start"):
            case "fusion" | "async":
                reads, writes = self._sliced(instruction.called("calls")[0])
            case "slice" | "dynamic-slice":
                reads = {0: size} | dict.fromkeys(range(1, len(operands)), 0)
            case "gather":
                reads = {0: size}
            case "dynamic-update-slice":
                update = operands[1].bytes_ if operands[1] else 0
                reads, writes = {0: 0} | dict.fromkeys(range(2, len(operands)), 0), [update]
        if len(writes) != len(result):
            writes = (None,) * len(result)
        moved = 0
        for array, part in zip(result, writes, strict=True):
            moved += _at_most(array.bytes_, part) if array.in_hbm else 0
        for index, operand in enumerate(operands):
            moved += _at_most(operand.hbm_bytes, reads.get(index)) if operand else 0
        return moved

    def _sliced(self, name: str) -> tuple[dict[int, int | None], list[int | None]]:
        """Counts the bytes read of each parameter of a fused computation and written of each result; None is all."""
        body = self._computations[name]
        users: dict[str, list[tuple[Instruction, int]]] = collections.defaultdict(list)
        for instruction in body.values():
            for index, operand in enumerate(instruction.operands):
                users[operand].append((instruction, index))

        def read(instruction: Instruction) -> int | None:
            total = 0
            for user, index in users[instruction.name]:
                part: int | None = None
                if user.kind in ("slice", "dynamic-slice") or (user.kind == "gather" and index == 0):
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


def _without_operands(start: Instruction, operands: Sequence[Instruction | None]) -> tuple[Array, ...]:
    """Lists the arrays that a `-start` half makes; its result also has operands (not an all-reduce's) and contexts."""
    if start.kind == "all-reduce-start":
        return start.result
    if start.kind == "copy-start":  # (destination, source, context)
        return start.result[:1]
    rest = start.result[sum(len(operand.result) for operand in operands if operand) :]
    return tuple(array for array in rest if array.shape or array.in_hbm)


def _group_size(attributes: str) -> int | None:
    """Reads how many devices a collective is among; None if it is among all of them.

    There are three forms: lists, {{0,1},{2,3}}; their shape, [2,2]<=[4]; axes of a mesh, mesh['x'=2,'y'=2] {'y'}.
    """
    if lists := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return lists[1].count(",") + 1
    if shape := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(shape[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"('\w+')=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'\w+'", mesh[2]))
    return None


def _sent(kind: str, group: int) -> float:
    """Returns the share of a collective's bytes that a device sends, in a ring of `group` devices."""
    if kind.startswith("collective-"):  # point to point
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (group - 1) / group


def _at_most(whole: int, part: int | None) -> int:
    return whole if part is None else min(whole, part)


def _multiplications(instruction: Instruction, operands: Sequence[Array]) -> int:
    library = _LIBRARY.search(instruction.attributes)
    if instruction.kind == "dot" or (library and library[1] == "cublas$"):
        outputs, left = math.prod(instruction.result[0].shape), operands[0]
        axes = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', instruction.attributes)
        return outputs * math.prod(left.shape[int(axis)] for axis in re.findall(r"\d+", axes[1] if axes else ""))
    output, kernel = instruction.result[0], operands[1]
    if library and library[2] == "BackwardInput":  # (gradient of the output, kernel)
        output = operands[0]
    elif library and library[2] == "BackwardFilter":  # (input, gradient of the output)
        output, kernel = kernel, output
    labels = re.search(r"dim_labels=\w+?_(\w+?)->", instruction.attributes)
    dilation = re.search(r"lhs_dilate=([\dx]+)", instruction.attributes)
    assert labels, f"{instruction.name} is a convolution without dim_labels"
    each = math.prod(size for label, size in zip(labels[1], kernel.shape, strict=True) if label != "o")
    return math.prod(output.shape) * each // math.prod(map(int, dilation[1].split("x") if dilation else ()))
