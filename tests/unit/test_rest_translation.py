"""Between the words of an older api-version and today's (spec/rest.md §12)."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.service.errors import BatchError
from nodeagent.service.rest.query import Query
from nodeagent.service.rest.translation import Translation, translation_of
from nodeagent.service.rest.versions import KNOWN_VERSIONS

CURRENT = sorted(version for version in KNOWN_VERSIONS if version >= "2020-09")
OLDER = sorted(KNOWN_VERSIONS - set(CURRENT))
METADATA = "http://h/$metadata#"
NAMES = ["id", "httpUrl", "taskSlotsPerNode", "targetDedicatedNodes", "preProcessingError", "settings", "value"]
BODIES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.sampled_from(NAMES), parts, max_size=4),
    max_leaves=12,
)


def translation(version: str) -> Translation:
    """Return the translation of a version that has one."""
    found = translation_of(version)
    assert found is not None
    return found


def to_today(version: str, body: object) -> Any:  # noqa: ANN401 - JSON is anything
    """Return the body of a request in today's words."""
    return orjson.loads(translation(version).request_body(orjson.dumps(body)))


def then(version: str, body: dict[str, Any], operation: str = "Pools_GetPool", query: str = "") -> dict[str, Any]:
    """Return an answer in the words of a version."""
    return dict(translation(version).reply_body(operation, Query(query), body))


@pytest.mark.parametrize("version", CURRENT)
def test_clients_in_use_speak_as_today(version: str) -> None:
    """Nothing is walked through for them."""
    assert translation_of(version) is None


@pytest.mark.parametrize(
    ("name", "today", "value", "last"),
    [
        ("maxTasksPerNode", "taskSlotsPerNode", 4, "2020-03-01.11.0"),
        ("blobSource", "httpUrl", "https://h/b", "2018-08-01.7.0"),
        ("targetDedicated", "targetDedicatedNodes", 2, "2017-01-01.4.0"),
        ("schedulingError", "preProcessingError", {"jobAction": "none"}, "2017-01-01.4.0"),
    ],
)
def test_a_property_has_its_older_name_until_a_version(name: str, today: str, value: object, last: str) -> None:
    """Both ways, however deep it stands; a younger client that uses the older name is refused by the model."""
    for version in OLDER:
        given = {"value": [{"a": {name: value}}]}
        if version <= last:
            assert to_today(version, given) == {"value": [{"a": {today: value}}]}
            assert then(version, {"value": [{"a": {today: value}}]}) == given
        else:
            assert to_today(version, given) == given


@pytest.mark.parametrize("version", ["2016-02-01.3.0", "2018-03-01.6.1", "2019-08-01.10.0"])
@given(body=st.dictionaries(st.sampled_from(NAMES), BODIES, max_size=4))
def test_what_a_client_is_shown_it_may_send_back(version: str, body: dict[str, Any]) -> None:
    """Renaming loses nothing and has one way back."""
    assert to_today(version, then(version, body)) == body


def test_elevation_was_a_flag() -> None:
    """Before 2017-01 a task said `runElevated` instead of its user."""
    for flag, level in ((True, "admin"), (False, "nonadmin")):
        identity = {"userIdentity": {"autoUser": {"elevationLevel": level}}}
        assert to_today("2016-07-01.3.1", {"runElevated": flag}) == identity
        assert then("2016-07-01.3.1", identity) == {"runElevated": flag}
        assert then("2017-01-01.4.0", identity) == identity
    assert to_today("2016-07-01.3.1", {"runElevated": "yes"}) == {"runElevated": "yes"}


def test_who_gives_both_names_keeps_the_one_that_is_refused() -> None:
    """No value is chosen in silence."""
    both = {"maxTasksPerNode": 2, "taskSlotsPerNode": 3}
    assert to_today("2019-08-01.10.0", both) == both


def test_json_of_others_is_left_alone() -> None:
    """The settings of an extension belong to who made the extension."""
    extension = {"settings": {"blobSource": 1, "result": 2}, "protectedSettings": {"runElevated": True}}
    assert to_today("2016-02-01.3.0", extension) == extension
    assert then("2016-02-01.3.0", extension) == extension


def test_a_failure_was_a_scheduling_error_and_results_were_unknown() -> None:
    """Before 2017-05, of tasks; one resize error instead of several."""
    task = {"executionInfo": {"exitCode": 1, "result": "failure", "failureInfo": {"code": "x"}}, "requiredSlots": 1}
    older = then("2017-01-01.4.0", task, "Tasks_GetTask")
    assert older == {"executionInfo": {"exitCode": 1, "schedulingError": {"code": "x"}}}
    assert then("2017-01-01.4.0", {"resizeErrors": [{"code": "a"}, {"code": "b"}]}) == {"resizeError": {"code": "a"}}
    assert then("2017-01-01.4.0", {"resizeErrors": []}) == {}
    assert then("2017-05-01.5.0", {"resizeErrors": [{"code": "a"}]}) == {"resizeErrors": [{"code": "a"}]}


def test_task_counts_were_flat() -> None:
    """Five numbers, for a while with the word that they had been checked."""
    body = {"odata.metadata": METADATA, "taskCounts": {"active": 1}, "taskSlotCounts": {"active": 2}}
    operation = "Jobs_GetJobTaskCounts"
    assert then("2019-08-01.10.0", body, operation) == {"odata.metadata": METADATA, "active": 1}
    for version in ("2017-06-01.5.1", "2018-03-01.6.1"):
        assert then(version, body, operation)["validationStatus"] == "validated"
    assert "validationStatus" not in then("2018-08-01.7.0", body, operation)


def test_the_link_of_a_status_list_keeps_the_rest_of_itself() -> None:
    """A job may be called like the list, and a filter may hold anything."""
    name = "jobpreparationandreleasetaskstatus"
    link = f"http://h/jobs/{name}/{name}?api-version=2016-02-01.3.0&$filter=nodeId eq '{name}'&$skiptoken=x"
    body = {"odata.metadata": f"{METADATA}{name}list", "value": [], "odata.nextLink": link}
    older = then("2016-02-01.3.0", body, "Jobs_ListJobPreparationAndReleaseTaskStatus")
    assert older["odata.metadata"] == f"{METADATA}jobpreparationandreleasestatuslist"
    assert older["odata.nextLink"] == (
        f"http://h/jobs/{name}/jobpreparationandreleasestatus"
        f"?api-version=2016-02-01.3.0&$filter=nodeId eq '{name}'&$skipToken=x"
    )


def test_the_retry_count_of_a_release_is_shown_as_far_as_it_is_selected() -> None:
    """Seed 000 shows it, always 0: a release task is never retried."""
    body = {"odata.metadata": f"{METADATA}jobpreparationandreleasetaskstatuslist"}
    release = "jobReleaseTaskExecutionInfo"
    for query, counted in (
        ("", True),
        (f"$select=nodeId, {release}", True),
        (f"$select={release}/retryCount", True),
        (f"$select={release}/exitCode", False),
    ):
        answer = body | {"value": [{release: {"exitCode": 0}}]}
        older = then("2016-02-01.3.0", answer, "Jobs_ListJobPreparationAndReleaseTaskStatus", query)
        assert ("retryCount" in older["value"][0][release]) is counted
        assert answer["value"] == [{release: {"exitCode": 0}}]


def test_select_takes_the_names_of_its_version() -> None:
    """Names that the version does not have stay as they are, and are judged like others."""
    query = Query("api-version=2016-07-01.3.1&$select=id, maxTasksPerNode,runElevated,colour")
    translated = translation("2016-07-01.3.1").query(query)
    assert translated.get("$select") == "id,taskSlotsPerNode,userIdentity,colour"
    assert translated.api_version == "2016-07-01.3.1"


def test_no_body_stays_none_and_no_json_is_refused() -> None:
    """As for clients of today."""
    assert translation("2016-02-01.3.0").request_body(b"") == b""
    with pytest.raises(BatchError, match="InvalidRequestBody"):
        translation("2016-02-01.3.0").request_body(b"[1]")
