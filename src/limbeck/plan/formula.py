"""Arithmetic that a user writes: a column `C/(6*N)`, a condition `experiment=='a' and N>1e8`, a law of their own.

A formula is parsed by Python's own grammar and walked: numbers, strings, names, + - * / **, comparisons, and/or/not, and the
functions of `FUNCTIONS`. Nothing else can be written, so nothing else can run. Names with spaces stand in backticks:
`` `Training FLOP` / (6 * N) ``.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from limbeck.errors import SpecError
from limbeck.spec.base import nearest

FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "log": (np.log, 1),
    "log10": (np.log10, 1),
    "exp": (np.exp, 1),
    "sqrt": (np.sqrt, 1),
    "abs": (np.abs, 1),
    "minimum": (np.minimum, 2),
    "maximum": (np.maximum, 2),
}
"""Each with the number of its arguments."""
_ARITHMETIC: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: np.divide,
    ast.Pow: np.power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: np.logical_not,
}
_COMPARISONS: dict[type, Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_QUOTED = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Formula:
    """A parsed formula: its text, and the names that need values."""

    text: str
    names: frozenset[str]
    _tree: ast.expr
    _quoted: Mapping[str, str]

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The formula's value for numbers or arrays; `SpecError` for a name without one, and for arithmetic with text."""
        missing = sorted(self.names - values.keys())
        if missing:
            raise SpecError(f"{self.text!r} needs {missing[0]!r}, which is not known{nearest(missing[0], sorted(values))}")
        try:
            return self._value(self._tree, values)
        except TypeError:
            raise SpecError(f"{self.text!r} calculates with text: use == and != for it, and numbers elsewhere") from None

    def _value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return values[self._quoted.get(name, name)]
            case ast.UnaryOp(op=op, operand=operand):
                return _ARITHMETIC[type(op)](self._value(operand, values))
            case ast.BinOp(left=left, op=op, right=right):
                return _ARITHMETIC[type(op)](_number(self._value(left, values)), _number(self._value(right, values)))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                sides = [self._value(side, values) for side in (left, *comparators)]
                pairs = zip(ops, sides, sides[1:], strict=False)
                return reduce(np.logical_and, [_COMPARISONS[type(op)](left, right) for op, left, right in pairs])
            case ast.BoolOp(op=op, values=parts):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return reduce(join, [self._value(part, values) for part in parts])
            case ast.Call(func=ast.Name(id=name), args=args):
                return FUNCTIONS[name][0](*(self._value(arg, values) for arg in args))
        raise AssertionError(f"`parse` let {ast.dump(node)} through")


def parse_formula(text: str) -> Formula:
    """The formula that `text` says; `SpecError` where it is none."""
    quoted: dict[str, str] = {}

    def placeholder(found: re.Match[str]) -> str:
        name = f"__quoted_{len(quoted)}__"
        quoted[name] = found[1]
        return name

    try:
        tree = ast.parse(_QUOTED.sub(placeholder, text).strip(), mode="eval").body
        names = {quoted.get(name, name) for name in _names(tree, text)}
    except (SyntaxError, ValueError, RecursionError, OverflowError):
        raise SpecError(f"{text!r} is not a formula: write it as in Python, names with spaces in backticks") from None
    return Formula(text, frozenset(names), tree, quoted)


def _names(node: ast.expr, text: str) -> set[str]:
    """The names in a tree; refuses everything that `Formula` can't evaluate."""
    match node:
        case ast.Constant(value=int() | float() | str()) if not isinstance(node.value, bool):
            return set()
        case ast.Name(id=name):
            return {name}
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _ARITHMETIC:
            return _names(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _names(left, text) | _names(right, text)
        case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _COMPARISONS for op in ops):
            return set().union(*(_names(part, text) for part in (left, *comparators)))
        case ast.BoolOp(values=parts):
            return set().union(*(_names(part, text) for part in parts))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS and len(args) != FUNCTIONS[name][1]:
            raise SpecError(f"{text!r}: {name} takes {FUNCTIONS[name][1]} arguments, not {len(args)}")
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return set().union(*(_names(arg, text) for arg in args))
        case ast.Call(func=ast.Name(id=name)) if name not in FUNCTIONS:
            raise SpecError(f"{text!r}: {name} is not a function of formulas{nearest(name, sorted(FUNCTIONS))}")
    raise SpecError(f"{text!r}: {ast.unparse(node)!r} can't stand in a formula")


def _number(value: Any) -> Any:
    # Whole numbers as floats: among NumPy's integers 10**-2 is an error, and 6 N D of a large model wraps around.
    if isinstance(value, int):
        return float(value)
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype.kind in "iu" else value
