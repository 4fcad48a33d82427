"""`$filter`: every tree survives its text form, every text gives a tree or a FilterError, SQL gives the right rows."""

import sqlite3
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.service.errors import BatchError
from nodeagent.service.rest.odata.grammar import MAX_DEPTH, MAX_LENGTH, MAX_TERMS, parse_filter
from nodeagent.service.rest.odata.request import filter_name_prefix, filter_where
from nodeagent.service.rest.odata.tree import And, Comparison, Expression, FilterError, Operator, Or, StartsWith
from nodeagent.service.rest.odata.where import to_where
from nodeagent.service.rest.query import Query
from nodeagent.service.store.columns import Column, ColumnType, to_micros

IDENTIFIERS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda text: text not in ("true", "false", "null")
)
PATHS = st.lists(IDENTIFIERS, min_size=1, max_size=2).map("/".join)
TIMES = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)).map(  # noqa: DTZ001 - made aware
    lambda value: value.replace(tzinfo=UTC)
)
LITERALS = st.text(max_size=12) | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none() | TIMES
LEAVES = st.builds(Comparison, PATHS, st.sampled_from(Operator), LITERALS) | st.builds(
    StartsWith, PATHS, st.text(max_size=12)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(lambda terms: And(tuple(terms)))
        | st.lists(inner, min_size=2, max_size=3).map(lambda terms: Or(tuple(terms)))
    ),
    max_leaves=8,
)


@given(TREES)
def test_every_tree_survives_its_text_form(tree: Expression) -> None:
    """Printing and parsing again gives the same tree, with the same nesting."""
    assert parse_filter(str(tree)) == tree


WORDS = st.sampled_from(
    ["and", "or", "not", "eq", "ne", "is", "(", ")", "startswith(", ",", "/", "id", "a/b"]
) | st.sampled_from(
    [
        "'a'",
        "'",
        "''",
        "5",
        "-",
        "true",
        "null",
        "\x00",
        "é",
        " ",
        "DateTime'2014-05-15T00:00:00Z'",
        "2014-05-15T00:00:00Z",
    ]
)


@given(st.lists(WORDS, max_size=12).map(" ".join) | st.text(max_size=40))
def test_any_text_gives_a_tree_or_a_filter_error(text: str) -> None:
    """No text makes the parser fail in any other way."""
    try:
        tree = parse_filter(text)
    except FilterError:
        return
    assert parse_filter(str(tree)) == tree


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("state eq 'active' and", 22),
        ("state eq", 9),
        ("state is 'active'", 7),
        ("(state eq 'active'", 19),
        ("state eq 'active' xor id eq 'a'", 19),
        ("startTime gt DateTime'yesterday'", 14),
        ("exitCode eq 99999999999999999999", 13),
        ("not state eq 'active'", 5),
        ("", 1),
        ("  ", 1),
        ("startTime gt DateTime'0001-01-01T00:00:00+05:00'", 14),
        ("(" * (MAX_DEPTH + 1) + "a eq 1" + ")" * (MAX_DEPTH + 1), MAX_DEPTH + 2),
        (" or ".join(["a eq 1"] * (MAX_TERMS + 1)), MAX_TERMS * 10 + 1),
        ("a eq '" + "x" * MAX_LENGTH + "'", MAX_LENGTH + 1),
    ],
)
def test_a_wrong_filter_says_where(text: str, position: int) -> None:
    """The position counts characters from 1; at the end of the text it is one behind it."""
    with pytest.raises(FilterError, match=rf"at position {position}\)"):
        parse_filter(text)


def test_and_binds_tighter_than_or() -> None:
    """`a or b and c` is `a or (b and c)`."""
    a, b, c = (Comparison(name, Operator.EQ, 1) for name in "abc")
    assert parse_filter("a eq 1 or b eq 1 and c eq 1") == Or((a, And((b, c))))
    assert parse_filter("(a eq 1 or b eq 1) and c eq 1") == And((Or((a, b)), c))


def test_the_blank_before_the_slash_of_seed_000_is_tolerated() -> None:
    """The page prints `jobReleaseTaskExecutionInfo /startTime`."""
    tree = parse_filter("jobReleaseTaskExecutionInfo /startTime ge DateTime'2014-05-15T00:00:00.0000000Z'")
    moment = datetime(2014, 5, 15, tzinfo=UTC)
    assert tree == Comparison("jobReleaseTaskExecutionInfo/startTime", Operator.GE, moment)


def test_a_filter_of_the_largest_size_works() -> None:
    """What is allowed reaches no recursion limit, neither of Python nor of SQLite; what is not says where (above)."""
    tree = parse_filter("(" * (MAX_DEPTH - 1) + " or ".join(["a eq 1"] * MAX_TERMS) + ")" * (MAX_DEPTH - 1))
    where = to_where(tree, {"a": Column("a", ColumnType.INTEGER)})
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE TABLE t (a)")
        connection.execute("INSERT INTO t VALUES (1)")
        found = connection.execute(f"SELECT a FROM t WHERE {where.sql}", where.parameters)  # noqa: S608
        assert found.fetchall() == [(1,)]
    finally:
        connection.close()


COLUMNS = {
    "id": Column("t.key", ColumnType.ID),
    "name": Column("t.name", ColumnType.TEXT),
    "state": Column("t.state", ColumnType.ENUM),
    "executionInfo/exitCode": Column("t.exit_code", ColumnType.INTEGER),
    "executionInfo/endTime": Column("t.ended", ColumnType.TIME),
    "enableAutoScale": Column("t.auto", ColumnType.BOOLEAN),
}
ENDED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROWS = [
    ("one", "One", "active", None, None, 0),
    ("two", "Two", "completed", 0, to_micros(ENDED), 1),
    ("t%o", "it's", "completed", 3, to_micros(ENDED) + 1, 0),
]


def matching(text: str) -> list[str]:
    """Return the keys of the rows that a filter lets through, in SQLite."""
    where = to_where(parse_filter(text), COLUMNS)
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE TABLE t (key, name, state, exit_code INTEGER, ended INTEGER, auto INTEGER)")
        connection.executemany("INSERT INTO t VALUES (?,?,?,?,?,?)", ROWS)
        rows = connection.execute(f"SELECT key FROM t WHERE {where.sql} ORDER BY rowid", where.parameters)  # noqa: S608
        return [row[0] for row in rows]
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("id eq 'ONE'", ["one"]),
        ("startswith(id,'T')", ["two", "t%o"]),
        ("startswith(id,'t%')", ["t%o"]),
        ("startswith(id,'')", ["one", "two", "t%o"]),
        ("name eq 'it''s'", ["t%o"]),
        ("state eq 'Completed' and executionInfo/exitCode gt 0", ["t%o"]),
        ("state ne 'completed'", ["one"]),
        ("executionInfo/exitCode ne 0", ["one", "t%o"]),
        ("executionInfo/exitCode le 0", ["two"]),
        ("executionInfo/exitCode lt 100 or state eq 'active'", ["one", "two", "t%o"]),
        ("executionInfo/endTime le DateTime'2026-01-02T03:04:05.0000000Z'", ["two"]),
        ("executionInfo/endTime gt '2026-01-02T03:04:05Z'", ["t%o"]),
        ("executionInfo/endTime ge 2026-01-02T04:04:05+01:00", ["two", "t%o"]),
        ("executionInfo/exitCode eq null", ["one"]),
        ("executionInfo/exitCode ne null and state ne null", ["two", "t%o"]),
        ("enableAutoScale eq true", ["two"]),
        ("enableAutoScale ne true", ["one", "t%o"]),
        ("(id eq 'one' or id eq 'two') and state eq 'active'", ["one"]),
    ],
)
def test_the_condition_lets_the_right_rows_through(text: str, keys: list[str]) -> None:
    """Ids and enums compare without case; a missing value is unequal to everything and compares false otherwise."""
    assert matching(text) == keys


@given(st.text(max_size=20))
def test_user_text_is_never_in_the_sql(text: str) -> None:
    """Whatever is quoted in the filter goes into the parameters."""
    where = to_where(Comparison("name", Operator.EQ, text), COLUMNS)
    assert where.sql == "t.name = ?"
    assert where.parameters == (text,)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nodeId eq 'a'", "not a property"),
        ("ID eq 'a'", "not a property"),
        ("state gt 'active'", "only be compared with eq and ne"),
        ("enableAutoScale eq 'true'", "true or false"),
        ("executionInfo/exitCode eq '1'", "a whole number"),
        ("executionInfo/exitCode eq true", "a whole number"),
        ("executionInfo/endTime gt 5", "a time"),
        ("executionInfo/endTime gt 'soon'", "not a time"),
        ("startswith(state,'a')", "does not apply"),
        ("executionInfo/exitCode lt null", "null can only be compared with eq and ne"),
        ("state ge null", "only be compared with eq and ne"),
        ("id eq 5", "a quoted text"),
    ],
)
def test_what_the_list_does_not_know_is_refused(text: str, reason: str) -> None:
    """Unknown property, wrong operator, wrong kind of literal: each gets a reason."""
    with pytest.raises(FilterError, match=reason):
        to_where(parse_filter(text), COLUMNS)


def test_a_refused_filter_names_parameter_value_and_reason() -> None:
    """The three values are those that clients print."""
    with pytest.raises(BatchError) as caught:
        filter_where(Query("$filter=state%20is%201"), COLUMNS)
    assert (caught.value.status, caught.value.code) == (400, "InvalidQueryParameterValue")
    values = dict(caught.value.values)
    assert values["QueryParameterName"] == "$filter"
    assert values["QueryParameterValue"] == "state is 1"
    assert "position 7" in values["Reason"]


def test_file_lists_know_only_a_name_prefix() -> None:
    """`startswith(name,'wd/')` is the one documented filter of files."""
    assert filter_name_prefix(Query("$filter=startswith(name,'wd/')")) == "wd/"
    assert filter_name_prefix(Query("")) == ""
    with pytest.raises(BatchError, match="InvalidQueryParameterValue"):
        filter_name_prefix(Query("$filter=name eq 'x'"))
