"""What is uploaded under which name and with which headers, and what its failure is called."""

import pytest

from nodeagent.model.enums import ErrorCategory
from nodeagent.model.files import UploadHeader
from nodeagent.rules.file_patterns import file_pattern
from nodeagent.rules.upload_failures import UploadProblem, upload_failure
from nodeagent.rules.uploads import UploadHeaderError, blob_headers, blob_name, content_type


@pytest.mark.parametrize(
    ("pattern", "path", "relative", "blob"),
    [
        ("out/a.txt", None, "a.txt", "a.txt"),
        ("out/a.txt", "", "a.txt", "a.txt"),
        ("out/a.txt", "x/y", "a.txt", "x/y"),
        ("out/**/*.csv", "p", "a/b.csv", "p/a/b.csv"),
        ("out/**/*.csv", "p/", "a/b.csv", "p/a/b.csv"),
        ("out/**/*.csv", None, "a/b.csv", "a/b.csv"),
        ("../std*.txt", "mytask", "stdout.txt", "mytask/stdout.txt"),
        ("a[*]", "x", "a*", "x"),
    ],
)
def test_names_of_blobs(pattern: str, path: str | None, relative: str, blob: str) -> None:
    """The documented ones, and those of spec/node.md §5 [C]."""
    assert blob_name(path, file_pattern(pattern, {}), relative) == blob


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("p/stdout.txt", "text/plain"),
        ("a.json", "application/json"),
        ("a.csv.gz", "application/gzip"),
        ("a.tar.bz2", "application/octet-stream"),
        ("a", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
    ],
)
def test_content_types_are_guessed_from_names_only(name: str, expected: str) -> None:
    """What is compressed is not called what is in it: a browser would unpack it."""
    assert content_type(name) == expected


def test_properties_of_the_blob_go_as_such() -> None:
    """On Put Block List a plain Content-Type would be that of the list. Keys and leases go with each block."""
    given = {"Content-Type": "a/b", "x-ms-meta-A": "1", "X-MS-Lease-Id": "l", "x-ms-encryption-scope": "s"}
    headers = blob_headers((UploadHeader(name=name, value=value) for name, value in given.items()), "x.json")
    assert headers.of_blob == {
        "x-ms-blob-content-type": "a/b",
        "x-ms-meta-a": "1",
        "x-ms-lease-id": "l",
        "x-ms-encryption-scope": "s",
    }
    assert headers.of_block == {"x-ms-lease-id": "l", "x-ms-encryption-scope": "s"}


@pytest.mark.parametrize(
    "name", ["Authorization", "HOST", "Content-Length", "x-ms-version", "x-ms-blob-type", "a b", ""]
)
def test_headers_that_make_the_request_are_not_the_users(name: str) -> None:
    """They are named, and their value is not."""
    with pytest.raises(UploadHeaderError) as refused:
        blob_headers([UploadHeader(name=name, value="a-secret")], "x")
    assert "a-secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("problem", "code", "category"),
    [
        (UploadProblem(message="m", status=403), "FileUploadAccessDenied", ErrorCategory.USER_ERROR),
        (UploadProblem(message="m", status=401), "FileUploadAccessDenied", ErrorCategory.USER_ERROR),
        (UploadProblem(message="m", denied=True), "FileUploadAccessDenied", ErrorCategory.USER_ERROR),
        (
            UploadProblem(message="m", status=409, error_code="PublicAccessNotPermitted"),
            "FileUploadAccessDenied",
            ErrorCategory.USER_ERROR,
        ),
        (UploadProblem(message="m", status=404), "FileUploadContainerNotFound", ErrorCategory.USER_ERROR),
        (UploadProblem(message="m", status=409), "FileUploadConflict", ErrorCategory.USER_ERROR),
        (UploadProblem(message="m", status=412), "FileUploadConflict", ErrorCategory.USER_ERROR),
        (UploadProblem(message="m", timed_out=True), "FileUploadTimedOut", ErrorCategory.SERVER_ERROR),
        (
            UploadProblem(message="m", status=500, error_code="OperationTimedOut"),
            "FileUploadTimedOut",
            ErrorCategory.SERVER_ERROR,
        ),
        (UploadProblem(message="m", status=500), "FileUploadMiscError", ErrorCategory.SERVER_ERROR),
        (UploadProblem(message="m"), "FileUploadMiscError", ErrorCategory.SERVER_ERROR),
    ],
)
def test_failures_have_the_codes_of_the_specification(
    problem: UploadProblem, code: str, category: ErrorCategory
) -> None:
    """The first failure gives the code of all."""
    failure = upload_failure([("a", problem), ("b", UploadProblem(message="other", status=404))], 7)
    assert failure is not None
    assert (failure.code, failure.category) == (code, category)


def test_a_failure_tells_of_some_files_and_of_how_many() -> None:
    """More than five are in fileuploaderr.txt only."""
    problem = UploadProblem(message="no", status=403, error_code="E", request_id="r", attempts=3)
    failure = upload_failure([(f"f{number}", problem) for number in range(9)], 20)
    assert failure is not None
    found = {item.name: item.value for item in failure.details}
    assert found["Failed"] == "9 of 20 files"
    assert found["File5"] == "f4: no (status 403, E, request r, 3 attempts)"
    assert "File6" not in found
    assert upload_failure([], 20) is None


def test_a_problem_is_the_same_after_it_was_stored() -> None:
    """A second life tells what the first has seen."""
    problem = UploadProblem(message="no", status=403, timed_out=True, attempts=3)
    assert UploadProblem.from_json(problem.to_json()) == problem
