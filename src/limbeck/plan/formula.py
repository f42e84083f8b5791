"""Arithmetic that a user writes: a column `C/(6*N)`, a condition `experiment=='a' and N>1e8`, a law of their own.

A formula is parsed by Python's own grammar and walked: numbers, strings, names, + - * / **, comparisons, and/or/not (also & and
|, which bind as loosely), and the functions of `FUNCTIONS`. Nothing else can be written, so nothing else can run.

Names that Python can't spell stand in backticks, `` `Training FLOP` / (6 * N) ``, or as they are where the reader of a formula
knows them (`names`). A quoted string that isn't compared by == or != is such a name too. In a comparison of a column of text by
== or != quotes may be left out: `experiment==llama-2`, `outlier==False`; a column of True and False is a condition by itself.
"""

import ast
import keyword
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
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
}
_COMPARISONS: dict[type, Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_NUMBER = r"(?:(?:0|[1-9][\d_]*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_OPERAND = rf"(?:{_NUMBER}|[A-Za-z_]\w*)"
_SUM = re.compile(rf"[-+]*{_OPERAND}(?:[-+/][-+]*{_OPERAND})*")
_WORDLIKE = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_JOINS = {"&": " and ", "&&": " and ", "|": " or ", "||": " or "}
_PIECE = r"""`(?P<backticks>[^`]+)`
    | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<equals>[=!]=\s*)(?P<bare>[\w.:/@+-]+)(?![\w.:/@+-])(?=\s*(?:$|[)&|]|and\b|or\b))
    | (?P<join>&&?|\|\|?)
    | (?P<power>\^)"""
"""What has to be rewritten before Python's grammar can read it."""


@dataclass(frozen=True)
class Formula:
    """A parsed formula: its text, the names in it, and its quoted strings."""

    text: str
    names: frozenset[str]
    strings: frozenset[str]
    _tree: ast.expr
    _spelt: Mapping[str, str]

    @property
    def is_condition(self) -> bool:
        """Whether its value is true or false, and not a number."""
        tree = self._tree
        return isinstance(tree, ast.Compare | ast.BoolOp) or (isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not))

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The formula's value for numbers or arrays; `SpecError` for a name without one, and for arithmetic with text."""
        try:
            return self._value(self._tree, values)
        except TypeError:
            raise SpecError(f"{self.text!r} calculates with text: use == and != for it, and numbers elsewhere") from None

    def holds(self, values: Mapping[str, Any]) -> Any:
        """The formula's value where True and False in a column of text are what they say."""
        return self._truth(self.evaluate(values))

    def _value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name():
                return self._named(node, values)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return np.logical_not(self._truth(self._value(operand, values)))
            case ast.UnaryOp(op=op, operand=operand):
                return _ARITHMETIC[type(op)](self._value(operand, values))
            case ast.BinOp(left=left, op=op, right=right):
                return _ARITHMETIC[type(op)](_number(self._value(left, values)), _number(self._value(right, values)))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                pairs = zip(ops, pairwise((left, *comparators)), strict=True)
                return reduce(np.logical_and, [self._compare(op, *sides, values) for op, sides in pairs])
            case ast.BoolOp(op=op, values=parts):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return reduce(join, [self._truth(self._value(part, values)) for part in parts])
            case ast.Call(func=ast.Name(id=name), args=args):
                return FUNCTIONS[name][0](*(self._value(arg, values) for arg in args))
        raise AssertionError(f"`parse` let {ast.dump(node)} through")

    def _named(self, node: ast.Name, values: Mapping[str, Any]) -> Any:
        name = self._spelt.get(node.id, node.id)
        if name not in values:
            raise SpecError(f"{self.text!r} needs {name!r}, which is not known{nearest(name, sorted(values))}")
        return values[name]

    def _compare(self, op: ast.cmpop, left: ast.expr, right: ast.expr, values: Mapping[str, Any]) -> Any:
        if isinstance(op, ast.Eq | ast.NotEq):
            for word, column in ((self._bare(left, values), right), (self._bare(right, values), left)):
                if word is not None and self._is_text_column(column, values):
                    same = _equals(self._value(column, values), word)
                    return same if isinstance(op, ast.Eq) else np.logical_not(same)
        sides = self._value(left, values), self._value(right, values)
        if isinstance(op, ast.Eq | ast.NotEq) and _is_text(sides[0]) != _is_text(sides[1]):
            raise SpecError(f"{self.text!r} compares text with numbers: quote what is text, as in COL=='7'")
        return _COMPARISONS[type(op)](*sides)

    def _bare(self, node: ast.expr, values: Mapping[str, Any]) -> str | None:
        """Text without quotes: a name that isn't known, True or False."""
        match node:
            case ast.Name(id=name) if self._spelt.get(name, name) not in values:
                return self._spelt.get(name, name)
            case ast.Constant(value=bool()):
                return str(node.value)
        return None

    def _is_text_column(self, node: ast.expr, values: Mapping[str, Any]) -> bool:
        if not isinstance(node, ast.Name):
            return False
        name = self._spelt.get(node.id, node.id)
        return name in values and _is_text(values[name])

    def _truth(self, value: Any) -> Any:
        if not _is_text(value):
            return value
        is_true, is_false = _equals(value, "true"), _equals(value, "false")
        if not (is_true | is_false).all():
            raise SpecError(f"{self.text!r} takes text for a condition: only a column of nothing but True and False is one")
        return is_true


def parse_formula(text: str, *, names: Collection[str] = ()) -> Formula:
    """The formula that `text` says; `SpecError` where it is none. `names` are known: they need no backticks."""
    spelling = _Spelling(text, frozenset(names))
    try:
        tree = ast.parse(spelling.pythons().strip(), mode="eval").body
        found = {spelling.spelt.get(name, name) for name in _names(tree, text)}
    except SpecError as error:
        raise SpecError(spelling.users(str(error))) from None
    except (SyntaxError, ValueError, RecursionError, OverflowError):
        raise SpecError(
            f"{text!r} is not a formula: write it as in Python, names with spaces in backticks, text in quotes"
        ) from None
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return Formula(text, frozenset(found), frozenset(strings), tree, spelling.spelt)


@dataclass(frozen=True)
class _Spelling:
    """A text on its way to Python's grammar; `spelt` holds the names that placeholders stand for."""

    text: str
    names: frozenset[str]
    spelt: dict[str, str] = field(default_factory=dict)

    def pythons(self) -> str:
        """The text with placeholders, quotes and Python's operators."""
        odd = sorted((name for name in self.names if _is_odd(name)), key=len, reverse=True)
        known = rf" | (?<![\w.])(?P<known>{'|'.join(map(re.escape, odd))})(?!\w)" if odd else ""
        return re.sub(_PIECE + known, self._rewritten, self.text, flags=re.VERBOSE)

    def _rewritten(self, found: re.Match[str]) -> str:
        piece, kind = found[0], found.lastgroup
        match kind:
            case "backticks" | "known":
                return self._placeholder(found[kind])
            case "string":
                is_name = piece[1:-1] in self.names and not self._is_compared(found)
                return self._placeholder(piece[1:-1]) if is_name else piece
            case "bare":
                return found["equals"] + self._bare(found["bare"])
            case "join":
                return _JOINS[piece]
        raise SpecError(f"{self.text!r}: write ** for powers, not ^")

    def _is_compared(self, found: re.Match[str]) -> bool:
        before, after = self.text[: found.start()].rstrip(), self.text[found.end() :].lstrip()
        return before.endswith(("==", "!=")) or after.startswith(("==", "!="))

    def _bare(self, word: str) -> str:
        """What follows == or !=: a known name, arithmetic with known names, or else text."""
        if word in self.names and _is_odd(word):
            return self._placeholder(word)
        if word.isidentifier() and not _is_odd(word):
            return word
        is_known = not self.names or self.names.issuperset(_WORD.findall(word))
        return word if _SUM.fullmatch(word) and is_known else repr(word)

    def users(self, message: str) -> str:
        """A message with names in place of placeholders."""
        return re.sub(r"__name_\d+__", lambda found: self.spelt.get(found[0], found[0]), message)

    def _placeholder(self, name: str) -> str:
        placeholder = f"__name_{len(self.spelt)}__"
        self.spelt[placeholder] = name
        return placeholder


def _is_odd(name: str) -> bool:
    """Whether a name is none in Python's grammar; numbers are numbers. Python rewrites some letters beyond ASCII."""
    if keyword.iskeyword(name):
        return name not in ("and", "or", "not", "True", "False")
    return not (name.isidentifier() and name.isascii()) and _WORDLIKE.search(name) is not None and not is_number(name)


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype.kind == "U")


def _equals(column: Any, word: str) -> Any:
    """Where a column of text says `word`; True and False in any case."""
    if word.lower() in ("true", "false"):
        return np.char.lower(np.char.strip(column)) == word.lower()
    return column == word


def _names(node: ast.expr, text: str) -> set[str]:
    """The names in a tree; refuses everything that `Formula` can't evaluate."""
    match node:
        case ast.Constant(value=int() | float() | str()) if not isinstance(node.value, bool):
            return set()
        case ast.Name(id=name):
            return {name}
        case ast.UnaryOp(op=op, operand=operand) if isinstance(op, ast.Not) or type(op) in _ARITHMETIC:
            return _names(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _names(left, text) | _names(right, text)
        case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _COMPARISONS for op in ops):
            sides = [left, *comparators]
            if all(isinstance(op, ast.Eq | ast.NotEq) for op in ops):
                sides = [side for side in sides if not (isinstance(side, ast.Constant) and isinstance(side.value, bool))]
            return set().union(*(_names(side, text) for side in sides))
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
