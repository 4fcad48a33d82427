"""The language of autoscale formulas: what it means, and that no formula can do harm."""

from datetime import UTC, datetime
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.service.autoscale.evaluation import Results, Situation, evaluate
from nodeagent.service.autoscale.grammar import MAX_BYTES, MAX_STATEMENTS, parse_formula
from nodeagent.service.autoscale.samples import PERIOD, Sample
from nodeagent.service.autoscale.tree import EvaluationError, FormulaError, FormulaSyntaxError, FormulaTooLongError

NOW = datetime(2026, 1, 5, 10, 30, tzinfo=UTC)  # a Monday


def situation(*pending: float, missing: frozenset[int] = frozenset()) -> Situation:
    """Return a situation with samples of $PendingTasks, the last one of now; some of them may be missing."""
    count = len(pending)
    samples = [
        Sample(NOW - (count - 1 - number) * PERIOD, {"$PendingTasks": float(value), "$CurrentDedicatedNodes": 2.0})
        for number, value in enumerate(pending)
        if number not in missing
    ]
    return Situation(NOW, 2, 1, samples)


def run(formula: str, *pending: float) -> Results:
    """Evaluate a formula with such samples."""
    return evaluate(parse_formula(formula), situation(*pending))


def value(expression: str, *pending: float) -> str:
    """Return the value of one expression as results show it."""
    return run(f"$x = {expression}", *pending).variables["$x"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 * 3 - 8 / 4", "5"),
        ("(1 + 2) * -3", "-9"),
        ("10 - 3 - 2", "5"),
        (".5e1", "5"),
        ("!0 && 2 || 0", "1"),
        ("0 && 1 / 0", "0"),
        ("1 || 1 / 0", "1"),
        ("1 < 2 == 1", "1"),
        ("2 >= 2 && 2 <= 2 && 1 != 2 && 3 > 2", "1"),
        ("0 ? 1 : 0 ? 2 : 3", "3"),
        ("max(1, $PendingTasks.GetSample(3), 9)", "9"),
        ("min(4, 2)", "2"),
        ("avg($PendingTasks.GetSample())", "3"),
        ("sum($PendingTasks.GetSample(2))", "9"),
        ("len($PendingTasks.GetSample(10))", "5"),
        ("percentile($PendingTasks.GetSample(), 50)", "3"),
        ("percentile($PendingTasks.GetSample(), 25)", "2"),
        ("val($PendingTasks.GetSample(), 1)", "2"),
        ("range($PendingTasks.GetSample())", "4"),
        ("std(2, 4, 4, 4, 5, 5, 7, 9) > 2.13 && std(2, 4, 4, 4, 5, 5, 7, 9) < 2.14", "1"),
        ("norm(3, 4)", "5"),
        ("ceil(1.2) + floor(1.8) + round(2.5)", "6"),
        ("lg(8) + ln(exp(2)) + log(100)", "7"),
        ("$PendingTasks.GetSample(2) * 2 + 1", "[9,11]"),
        ("10 - $PendingTasks.GetSample(2)", "[6,5]"),
        ("$PendingTasks.GetSample(2) + $PendingTasks.GetSample(2)", "[8,10]"),
        ("$PendingTasks", "5"),
        ("$PendingTasks.GetSample(TimeInterval_Minute)", "[3,4,5]"),
        ("$PendingTasks.GetSample(TimeInterval_Minute * 2, TimeInterval_Second * 60)", "[1,2,3]"),
        ("$PendingTasks.GetSample(time() - TimeInterval_Second * 30, time())", "[4,5]"),
        ("$PendingTasks.GetSamplePercent(TimeInterval_Minute * 5)", "50"),
        ("$PendingTasks.GetSamplePeriod() == TimeInterval_Second * 30", "1"),
        ("$PendingTasks.HistoryBeginTime() == time() - 4 * TimeInterval_Second * 30", "1"),
        ("$PendingTasks.Count()", "5"),
        ("time()", "2026-01-05T10:30:00Z"),
        ('time("2026-02-01") > time()', "1"),
        ("time().weekday * 10000 + time().hour * 100 + time().minute", "11030"),
        ("time().year + time().month + time().day + time().second", "2032"),
        ("TimeInterval_Hour / TimeInterval_Minute", "60"),
        ("(time() - (time() - TimeInterval_Day)) / TimeInterval_Hour", "24"),
        ('"a" == "A"', "1"),
        ("rand() >= 0 && rand() < 1", "1"),
        ("$TargetDedicatedNodes + $TargetLowPriorityNodes", "3"),
    ],
)
def test_an_expression_has_the_documented_value(expression: str, expected: str) -> None:
    """Samples of pending tasks are 1 to 5, half a minute apart."""
    assert value(expression, 1, 2, 3, 4, 5) == expected


def test_the_documented_examples_of_formulas_work() -> None:
    """By tasks and samples, and by the time of day; comments and line breaks are allowed."""
    by_tasks = """
        startingNumberOfVMs = 1; // at first
        maxNumberofVMs = 25;
        pendingTaskSamplePercent = $PendingTasks.GetSamplePercent(180 * TimeInterval_Second);
        pendingTaskSamples = pendingTaskSamplePercent < 70 ? startingNumberOfVMs :
            avg($PendingTasks.GetSample(180 * TimeInterval_Second));
        $TargetDedicatedNodes = min(maxNumberofVMs, pendingTaskSamples);
        $NodeDeallocationOption = taskcompletion;
    """
    assert run(by_tasks, 40).dedicated == 1
    found = run(by_tasks, 9, 9, 9, 9, 9, 9, 9)
    assert (found.dedicated, found.option.value) == (9, "taskcompletion")
    assert run(by_tasks, *([40] * 7)).dedicated == 25
    by_time = """
        $curTime = time();
        $workHours = $curTime.hour >= 8 && $curTime.hour < 18;
        $isWeekday = $curTime.weekday >= 1 && $curTime.weekday <= 5;
        $isWorkingWeekdayHour = $workHours && $isWeekday;
        $TargetDedicatedNodes = $isWorkingWeekdayHour ? 20:10;
    """
    assert run(by_time).text == (
        "$TargetDedicatedNodes=20;$TargetLowPriorityNodes=1;$NodeDeallocationOption=requeue;"
        "$curTime=2026-01-05T10:30:00Z;$isWeekday=1;$isWorkingWeekdayHour=1;$workHours=1"
    )


def test_what_is_not_assigned_stays_and_a_part_of_a_node_is_a_node() -> None:
    """Half a node for half a task would be none; `stop` keeps what was assigned before it."""
    assert run("$TargetLowPriorityNodes = 0.2").text.startswith("$TargetDedicatedNodes=2;$TargetLowPriorityNodes=1;")
    found = run("$TargetDedicatedNodes = 7; stop(); $TargetDedicatedNodes = 8")
    assert found.dedicated == 7


@pytest.mark.parametrize(
    ("formula", "place", "said"),
    [
        ("x = ", (1, 3), "the end"),
        ("x = 1;\n y = 2 +* 3", (2, 9), "'*'"),
        ("x = [1]", (1, 5), "'['"),
        ("x = 1 y = 2", (1, 7), "'y'"),
        ("1 = x", (1, 3), "'='"),
        ("// nothing", None, "no statement"),
        ("x = " + "(" * 200 + "1" + ")" * 200 + "+", (1, 406), "the end"),
        ("x = " + "!" * 200 + "1", (1, 105), "within each other"),
        ("a=1;" * (MAX_STATEMENTS + 1), (1, 4 * MAX_STATEMENTS + 1), "statements"),
    ],
)
def test_a_text_that_is_no_formula_is_refused_with_the_place(
    formula: str, place: tuple[int, int] | None, said: str
) -> None:
    """Line and column, and what stands there."""
    with pytest.raises(FormulaSyntaxError) as caught:
        parse_formula(formula)
    assert (caught.value.place, said in caught.value.message) == (place, True)


def test_a_formula_that_is_too_long_is_refused_by_its_bytes() -> None:
    """8192 of them."""
    text = "x=1;" + " " * (MAX_BYTES - 4)
    assert len(parse_formula(text)) == 1
    with pytest.raises(FormulaTooLongError):
        parse_formula(text + " ")


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("x = y", "y has no value (line 1, column 5)"),
        ("x = 1 / 0", "division by zero"),
        ("x = avg($CPUPercent.GetSample())", "too few samples"),
        ("x = $CPUPercent", "no samples of $CPUPercent"),
        ("x = $PendingTasks.GetSample(TimeInterval_Hour, 50)", "50 % are wanted"),
        ("x = time() + time()", "timestamp + timestamp is not defined"),
        ("x = TimeInterval_Day * TimeInterval_Day", "is not defined"),
        ("x = time() ? 1 : 2", "a double is wanted"),
        ("x = nothing(1)", "there is no function nothing"),
        ("x = time().age", "has no age"),
        ("x = 1; x.GetSample()", "only the variables of the service"),
        ("$PendingTasks = 1", "cannot be assigned"),
        ("$TargetDedicatedNodes = -1", "from 0 to"),
        ("$TargetDedicatedNodes = time()", "must be a double"),
        ('$NodeDeallocationOption = "never"', "must be requeue"),
        ("x = exp(1000)", "range"),
        ("x = 1e308 * 10", "no number"),
        ("x = time() + TimeInterval_Year * 100000", "too large"),
        ("x = val($PendingTasks.GetSample(), 9)", "no element 9"),
        ("x = log(0)", ""),
        ("x = __class__", "has no value"),
    ],
)
def test_a_formula_without_a_value_says_why(formula: str, said: str) -> None:
    """And never anything but that."""
    with pytest.raises(EvaluationError) as caught:
        run(formula, 1, 2)
    assert said in str(caught.value)


def test_samples_that_are_missing_count_against_the_percentage() -> None:
    """Four of six expected ones are 66 %."""
    found = situation(*([1] * 7), missing=frozenset({0, 2, 4}))
    formula = parse_formula("$x = $PendingTasks.GetSamplePercent(TimeInterval_Minute * 3)")
    assert evaluate(formula, found).variables["$x"].startswith("66.6")


def test_the_most_work_that_a_formula_can_ask_for_is_bounded() -> None:
    """A day of samples, copied as often as the text allows: refused, or done, in about a second."""
    day = situation(*([1.0] * 2880))
    copies = "+".join(["$PendingTasks.GetSample()"] * 60)
    formula = parse_formula(";".join(f"x{number}={copies}" for number in range(5)))
    begun = perf_counter()
    with pytest.raises(EvaluationError, match="too much work"):
        evaluate(formula, day)
    assert perf_counter() - begun < 5


_WORDS = st.sampled_from(
    [
        *"+-*/()!?:;,.=<>",
        "&&",
        "||",
        "==",
        "1",
        "2.5",
        '"t"',
        "x",
        "$TargetDedicatedNodes",
        "$PendingTasks",
        "GetSample",
        "time()",
        "TimeInterval_Day",
        "avg",
        "max",
        "val",
        "stop",
        "\n",
        " ",
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(_WORDS, max_size=30).map(" ".join)))
def test_any_text_has_a_value_or_is_refused(text: str) -> None:
    """No text makes anything else happen."""
    try:
        found = evaluate(parse_formula(text), situation(1, 2, 3))
    except FormulaError:
        return
    assert found.dedicated >= 0
    assert isinstance(found.text, str)
