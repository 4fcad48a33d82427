"""`$filter` text to tree (spec/rest.md §4.1): `and` binds tighter than `or`, keywords are lower case."""

from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

from nodeagent.model.times import parse_time
from nodeagent.service.rest.odata.tree import And, Comparison, Expression, FilterError, Operator, Or, Scalar, StartsWith

MAX_LENGTH = 16_384
"""Characters of a filter; far above what clients send, far below what would make a parse costly."""
MAX_TERMS = 400
"""Comparisons in one filter: the depth that SQLite accepts for an expression is 1000."""
MAX_DEPTH = 50
"""Parentheses within parentheses."""

# Seed 000 prints a blank before the slash of a path: `jobReleaseTaskExecutionInfo /startTime`.
_GRAMMAR = r"""
    start: or_
    or_: and_ (_OR and_)*
    and_: term (_AND term)*
    ?term: "(" or_ ")"
         | STARTSWITH "(" PROPERTY "," STRING ")" -> startswith
         | PROPERTY OPERATOR literal -> comparison
    literal: DATETIME | TIME | STRING | INTEGER | BOOLEAN | NULL

    _OR.3: /or(?![A-Za-z0-9_\/])/
    _AND.3: /and(?![A-Za-z0-9_\/])/
    OPERATOR.3: /(?:eq|ne|gt|ge|lt|le)(?![A-Za-z0-9_\/])/
    STARTSWITH.3: /startswith(?=\s*\()/
    BOOLEAN.3: /(?:true|false)(?![A-Za-z0-9_])/
    NULL.3: /null(?![A-Za-z0-9_])/
    DATETIME.4: /[Dd]ate[Tt]ime'[^']*'/
    TIME.2: /\d{4}-\d{2}-\d{2}T[0-9:.]+(?:Z|[+-]\d{2}:\d{2})?/
    INTEGER.1: /-?\d{1,19}(?![A-Za-z0-9_.])/
    STRING: /'(?:[^']|'')*'/
    PROPERTY: /[A-Za-z_][A-Za-z0-9_]*(?:\s*\/\s*[A-Za-z_][A-Za-z0-9_]*)*/
    %ignore /\s+/
"""

_NAMES = {
    "_OR": "'or'",
    "_AND": "'and'",
    "OPERATOR": "eq, ne, gt, ge, lt or le",
    "STARTSWITH": "startswith(",
    "BOOLEAN": "true or false",
    "NULL": "null",
    "DATETIME": "a time",
    "TIME": "a time",
    "INTEGER": "a number",
    "STRING": "a quoted text",
    "PROPERTY": "a property",
    "LPAR": "'('",
    "RPAR": "')'",
    "COMMA": "','",
    "$END": "the end",
}


class _ToTree(Transformer[Token, Expression]):
    def start(self, children: list[Expression]) -> Expression:
        return children[0]

    def or_(self, children: list[Expression]) -> Expression:
        return children[0] if len(children) == 1 else Or(tuple(children))

    def and_(self, children: list[Expression]) -> Expression:
        return children[0] if len(children) == 1 else And(tuple(children))

    def startswith(self, children: list[Token]) -> Expression:
        _, name, text = children
        return StartsWith(_path(name), _unquote(text), _position(name))

    def comparison(self, children: list[Any]) -> Expression:
        name, operator, value = children
        return Comparison(_path(name), Operator(str(operator)), value, _position(name))

    def literal(self, children: list[Token]) -> Scalar:
        (word,) = children
        match word.type:
            case "INTEGER":
                return _integer(word)
            case "BOOLEAN":
                return str(word) == "true"
            case "NULL":
                return None
            case "TIME":
                return _time(word, str(word))
            case "DATETIME":
                return _time(word, word[len("datetime'") : -1])
            case _:
                return _unquote(word)


_PARSER = Lark(_GRAMMAR, parser="lalr", lexer="contextual", maybe_placeholders=False)
_TO_TREE = _ToTree()


def parse_filter(text: str) -> Expression:
    """Return the tree of a `$filter`. Raises FilterError with the position of what is wrong."""
    if len(text) > MAX_LENGTH:
        raise FilterError(f"a filter may have at most {MAX_LENGTH} characters", MAX_LENGTH + 1)
    if not text.strip():
        raise FilterError("the filter is empty", 1)
    try:
        parsed = _PARSER.parse(text)
    except UnexpectedInput as error:
        raise _syntax_error(error, len(text)) from error
    _check_size(parsed)
    try:
        return _TO_TREE.transform(parsed)
    except VisitError as error:
        if isinstance(error.orig_exc, FilterError):
            raise error.orig_exc from error
        raise


def _check_size(parsed: Any) -> None:  # noqa: ANN401 - lark's own tree type is not worth naming here
    """Refuse what would go too deep for a recursive walk or for SQLite; walks without recursion itself."""
    terms, waiting = 0, [(parsed, 0)]
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, Token):
            continue
        is_term = node.data in ("comparison", "startswith")
        terms += is_term
        deeper = depth + (node.data == "or_")
        # the position is that of the first comparison that is too much
        if is_term and depth > MAX_DEPTH:
            raise FilterError(f"parentheses may be nested at most {MAX_DEPTH} deep", _first_position(node))
        if terms > MAX_TERMS:
            raise FilterError(f"a filter may have at most {MAX_TERMS} comparisons", _first_position(node))
        waiting.extend((child, deeper) for child in reversed(node.children))


def _first_position(term: Any) -> int:  # noqa: ANN401 - as above
    return _position(next(child for child in term.children if isinstance(child, Token) and child.type == "PROPERTY"))


def _syntax_error(error: UnexpectedInput, length: int) -> FilterError:
    wanted: set[str]
    if isinstance(error, UnexpectedCharacters):
        wanted, position, found = set(error.allowed or ()), error.pos_in_stream, f"'{error.char}'"
    elif isinstance(error, UnexpectedToken):
        wanted, position, found = set(error.accepts or error.expected), error.pos_in_stream, f"'{error.token}'"
        if error.token.type == "$END":
            position, found = length, "the end of the filter"
    else:
        wanted, position, found = set(), length, "the end of the filter"
    names = " or ".join(sorted({_NAMES.get(name, name) for name in wanted if name != "$END"}))
    reason = f"unexpected {found}" + (f", expected {names}" if names else "")
    return FilterError(reason, (position or 0) + 1)


def _path(token: Token) -> str:
    return "/".join(part.strip() for part in token.split("/"))


def _unquote(token: Token) -> str:
    return token[1:-1].replace("''", "'")


def _position(token: Token) -> int:
    return (token.start_pos or 0) + 1


def _integer(token: Token) -> int:
    value = int(token)
    if not -(2**63) <= value < 2**63:
        raise FilterError("a number must fit into 64 bits", _position(token))
    return value


def _time(token: Token, text: str) -> Scalar:
    try:
        return parse_time(text)
    except ValueError as error:
        raise FilterError(str(error), _position(token)) from error
