"""Reads the text of a compiled step, `compiled.as_text()`, as computations of instructions."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16} | {
    f"{sign}{bits}": bits // 8 for sign in "su" for bits in (8, 16, 32, 64)
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"(ROOT )?%([\w.\-]+) = (.*)$")
_CALLED = r"%([\w.\-]+)"


@dataclasses.dataclass(frozen=True)
class Array:
    """Describes an array of an instruction's type: its size without padding, and if it is in HBM or on the chip."""

    dtype: str
    shape: tuple[int, ...]
    bytes_: int
    in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Holds one line of a computation: `ROOT %name = result kind(operands), attributes`."""

    name: str
    result: tuple[Array, ...]
    kind: str
    operands: tuple[str, ...]
    arguments: str  # the text between the parentheses
    attributes: str
    is_root: bool

    @property
    def bytes_(self) -> int:
        """Adds up the size of the result, in HBM and on the chip."""
        return sum(array.bytes_ for array in self.result)

    @property
    def hbm_bytes(self) -> int:
        """Adds up the size of the part of the result that is in HBM."""
        return sum(array.bytes_ for array in self.result if array.in_hbm)

    def called(self, *attributes: str) -> tuple[str, ...]:
        """Lists the computations that these attributes name."""
        names: list[str] = []
        for attribute in attributes:
            if match := re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes):
                names += re.findall(_CALLED, match[1])
        return tuple(names)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Parses a text into (computations by name, the name of the entry); raises ValueError if there is no entry."""
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
        raise ValueError("no entry computation: this is not the text of a compiled step")
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
    """Splits a text that begins with a parenthesis behind the one that closes it."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return text[: match.end()], text[match.end() :]
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


@functools.lru_cache(maxsize=4096)
def _arrays(text: str) -> tuple[Array, ...]:
    """Reads the arrays of a type, which may be a tuple of them: bf16[8,32]{1,0:T(8,128)S(1)}."""
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(text):
        if dtype in _SIZES:
            shape = tuple(map(int, filter(None, dims.split(","))))
            space = re.search(r"S\((\d+)\)", layout)
            in_hbm = space is None or space[1] == "0"
            arrays.append(Array(dtype, shape, math.ceil(math.prod(shape) * _SIZES[dtype]), in_hbm))
    return tuple(arrays)
