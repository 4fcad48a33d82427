"""The text of an autoscale formula to its tree, as Microsoft documents the language (docs/adr/0031).

Parsing is LALR and the tree is made from its leaves up, so that no text makes it recurse; how deep the tree may be,
and how long the text, is limited.
"""

from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

from nodeagent.service.autoscale.tree import (
    Binary,
    Call,
    Choice,
    Expression,
    Formula,
    FormulaSyntaxError,
    FormulaTooLongError,
    Literal,
    Member,
    Name,
    Place,
    Statement,
    Unary,
)

MAX_BYTES = 8192
"""The documented limit of a formula's text."""
MAX_STATEMENTS = 100
"""The documented limit of statements."""
MAX_DEPTH = 100
"""Operators and parentheses within each other: what evaluating may recurse."""

_GRAMMAR = r"""
    start: statement? (";" statement?)*
    statement: NAME "=" choice -> assignment
             | choice -> expression
    ?choice: either
           | either "?" choice ":" choice -> ternary
    ?either: both | either OR both -> binary
    ?both: equality | both AND equality -> binary
    ?equality: comparison | equality EQUALITY comparison -> binary
    ?comparison: sum | comparison ORDER sum -> binary
    ?sum: product | sum SIGN product -> binary
    ?product: unary | product FACTOR unary -> binary
    ?unary: postfix | SIGN unary -> unary | NOT unary -> unary
    ?postfix: atom
            | postfix "." NAME "(" _arguments? ")" -> method
            | postfix "." NAME -> member
    ?atom: NUMBER -> number
         | STRING -> text
         | NAME -> name
         | NAME "(" _arguments? ")" -> function
         | "(" choice ")"
    _arguments: choice ("," choice)*

    OR: "||"
    AND: "&&"
    EQUALITY: "==" | "!="
    ORDER: "<=" | ">=" | "<" | ">"
    SIGN: "+" | "-"
    FACTOR: "*" | "/"
    NOT: "!"
    NUMBER: /(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?/
    STRING: /"[^"\n]*"/
    NAME: /\$?[A-Za-z_][A-Za-z0-9_]*/
    %ignore /\s+/
    %ignore /\/\/[^\n]*/
    %ignore /\/\*(?:[^*]|\*(?!\/))*\*\//
"""

_NAMES = {
    "OR": "||",
    "AND": "&&",
    "EQUALITY": "== or !=",
    "ORDER": "<, <=, > or >=",
    "SIGN": "+ or -",
    "FACTOR": "* or /",
    "NOT": "!",
    "NUMBER": "a number",
    "STRING": "a quoted text",
    "NAME": "a name",
    "LPAR": "(",
    "RPAR": ")",
    "COMMA": ",",
    "SEMICOLON": ";",
    "EQUAL": "=",
    "QMARK": "?",
    "COLON": ":",
    "DOT": ".",
    "$END": "the end",
}


def _place(token: Token) -> Place:
    return token.line or 1, token.column or 1


def _depth(place: Place, *children: Expression) -> int:
    depth = 1 + max((child.depth for child in children), default=0)
    if depth > MAX_DEPTH:
        raise FormulaSyntaxError(f"more than {MAX_DEPTH} operators lie within each other", place)
    return depth


class _ToTree(Transformer[Token, Formula]):
    def start(self, children: list[Statement]) -> Formula:
        return tuple(children)

    def assignment(self, children: list[Any]) -> Statement:
        name, value = children
        return Statement(str(name), value, _place(name))

    def expression(self, children: list[Any]) -> Statement:
        (value,) = children
        return Statement(None, value, value.place)

    def ternary(self, children: list[Any]) -> Expression:
        condition, chosen, other = children
        return Choice(condition, chosen, other, condition.place, _depth(condition.place, *children))

    def binary(self, children: list[Any]) -> Expression:
        left, operator, right = children
        place = _place(operator)
        return Binary(str(operator), left, right, place, _depth(place, left, right))

    def unary(self, children: list[Any]) -> Expression:
        operator, operand = children
        place = _place(operator)
        return Unary(str(operator), operand, place, _depth(place, operand))

    def method(self, children: list[Any]) -> Expression:
        of, name, *arguments = children
        place = _place(name)
        return Call(str(name), tuple(arguments), of, place, _depth(place, of, *arguments))

    def function(self, children: list[Any]) -> Expression:
        name, *arguments = children
        place = _place(name)
        return Call(str(name), tuple(arguments), None, place, _depth(place, *arguments))

    def member(self, children: list[Any]) -> Expression:
        of, name = children
        place = _place(name)
        return Member(of, str(name), place, _depth(place, of))

    def number(self, children: list[Token]) -> Expression:
        return Literal(float(children[0]), _place(children[0]))

    def text(self, children: list[Token]) -> Expression:
        return Literal(str(children[0])[1:-1], _place(children[0]))

    def name(self, children: list[Token]) -> Expression:
        return Name(str(children[0]), _place(children[0]))


_PARSER = Lark(_GRAMMAR, parser="lalr", transformer=_ToTree())


def parse_formula(text: str) -> Formula:
    """Return a formula's statements. Raises FormulaTooLongError, FormulaSyntaxError with the place."""
    if len(text.encode()) > MAX_BYTES:
        raise FormulaTooLongError(f"a formula may have {MAX_BYTES} bytes", None)
    try:
        formula: Any = _PARSER.parse(text)
    except UnexpectedInput as error:
        raise _explained(error) from error
    except VisitError as error:
        if isinstance(error.orig_exc, FormulaSyntaxError):
            raise error.orig_exc from error
        raise
    if len(formula) > MAX_STATEMENTS:
        raise FormulaSyntaxError(f"there are more than {MAX_STATEMENTS} statements", formula[MAX_STATEMENTS].place)
    if not formula:
        raise FormulaSyntaxError("there is no statement", None)
    return tuple(formula)


def _explained(error: UnexpectedInput) -> FormulaSyntaxError:
    place = (max(1, error.line), max(1, error.column)) if error.line else None
    if isinstance(error, UnexpectedCharacters):
        return FormulaSyntaxError(f"'{error.char}' has no meaning here", place)
    if isinstance(error, UnexpectedToken):
        wanted = ", ".join(sorted({_NAMES.get(name, name) for name in error.accepts or error.expected}))
        found = "the end" if error.token.type == "$END" else f"'{str(error.token)[:40]}'"
        return FormulaSyntaxError(f"{found} stands where one of these is expected: {wanted}", place)
    return FormulaSyntaxError("the text is no formula", place)
