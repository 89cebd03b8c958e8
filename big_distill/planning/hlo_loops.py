"""Finds how often the loops of a compiled step run, if its text says it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from big_distill.planning.hlo_text import Instruction

_SAME_VALUE = ("copy", "copy-start", "copy-done", "bitcast")


class Loops:
    """Reads the loops of a module, given its computations by name."""

    def __init__(self, computations: Mapping[str, Mapping[str, Instruction]]):
        self._computations = computations
        self._callers = {
            called: (loop, name)
            for name, body in computations.items()
            for loop in body.values()
            if loop.kind == "while"
            for called in loop.called("condition", "body")
        }

    def trips(self, loop: Instruction, where: str) -> int | None:
        """Returns how often a loop in the computation `where` runs; None if the text does not say it."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known[1])
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        test, after = _root(self._computations[condition]), _root(self._computations[body])
        if test.kind != "compare" or "direction=LT" not in test.attributes or after.kind != "tuple":
            return None
        counter, limit = self._element(test.operands[0], condition), self._constant(test.operands[1], condition)
        if counter is None or limit is None:
            return None
        start = self._constant_element(loop.operands[0], counter, where)
        addition = self._computations[body].get(after.operands[counter])
        if start is None or addition is None or addition.kind != "add":
            return None
        kept = [self._element(operand, body) == counter for operand in addition.operands]
        steps = [self._constant(operand, body) for operand in addition.operands]
        step = steps[1] if kept[0] else steps[0] if kept[1] else None
        return max(0, -((start - limit) // step)) if step and step > 0 else None

    def _constant(self, name: str, where: str) -> int | None:
        """Returns an integer if it is a constant, also through copies and loops that leave it as it is; else None."""
        value = self._origin(name, where)
        if value.kind == "constant" and re.fullmatch(r"-?\d+", value.arguments):
            return int(value.arguments)
        if value.kind != "get-tuple-element":
            return None
        return self._constant_element(value.operands[0], _index(value), where)

    def _constant_element(self, name: str, index: int, where: str) -> int | None:
        """Returns the same for an element of a tuple."""
        source = self._computations[where][name]
        if source.kind == "tuple":
            return self._constant(source.operands[index], where)
        if source.kind != "parameter" or where not in self._callers:
            return None
        loop, outside = self._callers[where]
        (body,) = loop.called("body")
        after = _root(self._computations[body])
        unchanged = after.kind == "tuple" and self._element(after.operands[index], body) == index
        return self._constant_element(loop.operands[0], index, outside) if unchanged else None

    def _element(self, name: str, where: str) -> int | None:
        """Finds which element of the computation's parameter, a tuple, a value is; None if it is not one of them."""
        value = self._origin(name, where)
        if value.kind == "get-tuple-element" and self._computations[where][value.operands[0]].kind == "parameter":
            return _index(value)
        return None

    def _origin(self, name: str, where: str) -> Instruction:
        """Finds the value that another was copied from."""
        value = self._computations[where][name]
        return self._origin(value.operands[0], where) if value.kind in _SAME_VALUE else value


def _root(body: Mapping[str, Instruction]) -> Instruction:
    return next(instruction for instruction in body.values() if instruction.is_root)


def _index(element: Instruction) -> int:
    index = re.search(r"\bindex=(\d+)", element.attributes)
    assert index, f"{element.name} is a get-tuple-element without index"
    return int(index[1])
