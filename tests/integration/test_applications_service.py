"""Applications at the service: packages come by `nodeagent app`, and are listed with the unmodified SDK."""

import hashlib
import http.client
import io
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from azure.batch import BatchClient, models

from nodeagent.cli.main import main
from nodeagent.local.signing import authorization
from nodeagent.model.times import http_date, utc_now
from nodeagent.service.packages import FOLDER_NAME
from tests.integration.batch_endpoint import BatchEndpoint, Sdk, job, refusal, service_thread, task
from tests.unit.package_zips import Made, zipped

PACKAGE = zipped([Made("tool.txt", b"one")])
OTHER = zipped([Made("tool.txt", b"another one")])


@dataclass(frozen=True)
class Done:
    """What a command has said, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Applications:
    """A service, its folder, and `nodeagent app` for it."""

    endpoint: BatchEndpoint
    state_dir: Path
    folder: Path

    def app(self, *words: str) -> Done:
        """Run `nodeagent app`, in this process: a hundred starts of Python would take a minute."""
        out, err = io.StringIO(), io.StringIO()
        options = ["--endpoint", self.endpoint.url, "--account", self.endpoint.account, "--key", self.endpoint.key]
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["nodeagent", "app", *words, *options])
            with pytest.raises(SystemExit) as ended:
                main()
        return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def add(self, name: str, version: str, content: bytes = PACKAGE, *options: str) -> None:
        """Add a package."""
        (self.folder / "package.zip").write_bytes(content)
        done = self.app("add", name, version, str(self.folder / "package.zip"), *options)
        assert done.returncode == 0, done.stderr

    def remove(self, name: str, version: str) -> None:
        """Remove a package."""
        done = self.app("remove", name, version)
        assert done.returncode == 0, done.stderr

    @property
    def files(self) -> set[str]:
        """The files of packages at the service."""
        return {path.name for path in (self.state_dir / FOLDER_NAME).iterdir()}

    def put(self, path: str, content: bytes, **headers: str) -> tuple[int, str]:
        """Send a request as no client of ours would; return status and body."""
        url = f"{self.endpoint.url}{path}?api-version=2025-06-01"
        sent = {"ocp-date": http_date(utc_now()), "Content-Length": str(len(content)), **headers}
        if "Authorization" not in sent:
            sent["Authorization"] = authorization(self.endpoint.account, self.endpoint.key, "PUT", url, sent)
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        try:
            connection.request("PUT", f"{parts.path}?{parts.query}", content, sent)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Applications]:
    """One service for all tests of this file; each removes what it adds."""
    state_dir = tmp_path_factory.mktemp("state")
    with service_thread(state_dir, tmp_path_factory.mktemp("node")) as endpoint:
        yield Applications(endpoint, state_dir, tmp_path_factory.mktemp("files"))


@pytest.fixture
def made(shared: Applications) -> Iterator[Applications]:
    """The service, left without applications."""
    yield shared
    for line in shared.app("list").stdout.splitlines():
        name, version, *_ = line.split()
        shared.remove(name, version)
    assert shared.files == set()


@pytest.fixture
def client(shared: Applications) -> Iterator[Sdk]:
    """Return the SDK's client."""
    with BatchClient(shared.endpoint.url, shared.endpoint.credential()) as found:
        yield found


def test_packages_are_listed_as_the_sdk_expects(made: Applications, client: Sdk) -> None:
    """Ids keep their case and are found in any; pages follow each other; versions are ordered."""
    made.add("Blender", "2.80", PACKAGE, "--display-name", "Blender (3D)")
    made.add("blender", "2.79", OTHER)
    made.add("ffmpeg", "4.1")
    listed = [list(page) for page in client.list_applications(max_results=1).by_page()]
    assert [[(item.id, item.display_name, item.versions) for item in page] for page in listed] == [
        [("Blender", "Blender (3D)", ["2.79", "2.80"])],
        [("ffmpeg", "ffmpeg", ["4.1"])],
    ]
    found = client.get_application("BLENDER")
    assert (found.id, found.versions) == ("Blender", ["2.79", "2.80"])
    error = refusal(lambda: client.get_application("nothing"))
    assert (error.status_code, error.model.code) == (404, "ApplicationNotFound")


def test_the_same_content_changes_nothing_and_other_content_is_refused(made: Applications) -> None:
    """A version means one content for ever, until it is removed."""
    made.add("app", "1")
    assert made.app("add", "APP", "1", str(made.folder / "package.zip")).stdout == "APP 1 was there already\n"
    (made.folder / "package.zip").write_bytes(OTHER)
    refused = made.app("add", "app", "1", str(made.folder / "package.zip"))
    assert refused.returncode == 8
    assert "ApplicationPackageExists (HTTP 409)" in refused.stderr
    assert made.files == {f"{hashlib.sha256(PACKAGE).hexdigest()}.zip"}


def test_content_that_two_versions_share_stays_until_both_are_gone(made: Applications) -> None:
    """It is stored once."""
    made.add("app", "1")
    made.add("app", "2")
    assert len(made.files) == 1
    made.remove("app", "1")
    assert len(made.files) == 1
    made.remove("app", "2")
    assert made.files == set()
    assert made.app("list").stdout == ""


def test_the_default_version_is_listed_and_goes_with_its_package(made: Applications) -> None:
    """No other version takes its place by itself."""
    made.add("app", "1", PACKAGE, "--default")
    made.add("app", "2", OTHER)
    assert made.app("list").stdout == f"app 1 {len(PACKAGE)} (default)\napp 2 {len(OTHER)}\n"
    assert made.app("default", "app", "2").returncode == 0
    assert made.app("list").stdout == f"app 1 {len(PACKAGE)}\napp 2 {len(OTHER)} (default)\n"
    refused = made.app("default", "app", "3")
    assert (refused.returncode, "ApplicationPackageNotFound" in refused.stderr) == (8, True)
    made.remove("app", "2")
    assert made.app("list").stdout == f"app 1 {len(PACKAGE)}\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no zip", "not a zip file"), (zipped([Made("../x")]), "entry '../x' leads out of the package")],
)
def test_what_no_node_would_unpack_is_refused_at_once(made: Applications, content: bytes, reason: str) -> None:
    """Who adds the package is told, not who runs a task with it."""
    (made.folder / "package.zip").write_bytes(content)
    refused = made.app("add", "app", "1", str(made.folder / "package.zip"))
    assert refused.returncode == 8
    assert reason in refused.stderr
    assert made.files == set()


@pytest.mark.parametrize(("name", "version", "property_"), [("a.b", "1", "applicationId"), ("app", "1 2", "version")])
def test_names_that_batch_has_not_are_refused(made: Applications, name: str, version: str, property_: str) -> None:
    """The refusal names the property and what would be right."""
    (made.folder / "package.zip").write_bytes(PACKAGE)
    refused = made.app("add", name, version, str(made.folder / "package.zip"))
    assert re.search(f"InvalidPropertyValue.*PropertyName: {property_}.*1 to 64 letters", refused.stderr)


def test_only_the_account_may_add_packages(made: Applications) -> None:
    """The same authentication as the Batch API, before a byte is stored."""
    path = "/nodeagent/v1/applications/app/versions/1"
    status, body = made.put(path, PACKAGE, Authorization="SharedKey devaccount:bm90IHRoZSBrZXk=")
    assert (status, "AuthenticationFailed" in body) == (403, True)
    assert made.files == set()
    assert made.put(path, PACKAGE)[0] == 201


def test_a_package_in_use_stays(made: Applications, client: Sdk) -> None:
    """A pool's, and that of a task that has not completed: by its version, or because it is the default."""
    made.add("app", "1", PACKAGE, "--default")
    made.add("app", "2", OTHER)
    pool = models.BatchPoolCreateOptions(
        id="with-packages",
        vm_size="standard_d2_v2",
        application_package_references=[models.BatchApplicationPackageReference(application_id="APP")],
    )
    client.create_pool(pool)
    client.create_job(models.BatchJobCreateOptions(id="packages", pool_info=models.BatchPoolInfo(pool_id=pool.id)))
    reference = models.BatchApplicationPackageReference(application_id="app", version="2")
    client.create_task("packages", task("waits", application_package_references=[reference]))
    assert "UsedBy: pool with-packages" in made.app("remove", "app", "1").stderr
    assert "UsedBy: task waits of job packages" in made.app("remove", "app", "2").stderr
    client.begin_delete_job("packages", polling_interval=0).wait(30)
    made.remove("app", "2")
    client.begin_delete_pool("with-packages", polling_interval=0).wait(30)
    made.remove("app", "1")


@pytest.mark.parametrize(
    ("application", "version", "problem"),
    [
        ("nothing", "1", "There is no application of this id"),
        ("app", "2", "The application has no such version"),
        ("app", None, "the application has no default version"),
    ],
)
def test_a_pool_with_a_reference_that_means_nothing_is_refused(
    made: Applications, client: Sdk, application: str, version: str | None, problem: str
) -> None:
    """409, and the reference with what is wrong (spec/node.md §6)."""
    made.add("app", "1")
    reference = models.BatchApplicationPackageReference(application_id=application, version=version)
    pool = models.BatchPoolCreateOptions(id="none", vm_size="v", application_package_references=[reference])
    error = refusal(lambda: client.create_pool(pool))
    assert (error.status_code, error.model.code) == (409, "InvalidApplicationPackageReferences")
    (value,) = error.model.error_values
    assert value.key == (f"{application}:{version}" if version else application)
    assert problem in value.value


def test_a_pool_has_ten_references_at_most(client: Sdk) -> None:
    """More are refused by the property's name."""
    references = [models.BatchApplicationPackageReference(application_id=f"app{number}") for number in range(11)]
    pool = models.BatchPoolCreateOptions(id="many", vm_size="v", application_package_references=references)
    error = refusal(lambda: client.create_pool(pool))
    assert (error.status_code, error.model.code) == (400, "InvalidPropertyValue")
    assert error.model.error_values[0].value == "applicationPackageReferences"


def test_a_task_with_a_reference_that_means_nothing_is_accepted(made: Applications, client: Sdk) -> None:
    """It fails on the node, before its command (spec/node.md §6): see test_packages_service.py."""
    client.create_job(job("task-without-package"))
    try:
        reference = models.BatchApplicationPackageReference(application_id="nothing", version="1")
        client.create_task("task-without-package", task("one", application_package_references=[reference]))
        (found,) = client.get_task("task-without-package", "one").application_package_references
        assert (found.application_id, found.version) == ("nothing", "1")
    finally:
        client.begin_delete_job("task-without-package", polling_interval=0).wait(30)


def test_what_a_killed_service_left_is_removed_at_the_start(tmp_path: Path) -> None:
    """A file without a row, and a half file; a file with a row stays."""
    with service_thread(tmp_path / "state", tmp_path / "node") as endpoint:
        made = Applications(endpoint, tmp_path / "state", tmp_path)
        made.add("app", "1")
        before = made.files
    (tmp_path / "state" / FOLDER_NAME / f"{'0' * 64}.zip").write_bytes(OTHER)
    (tmp_path / "state" / FOLDER_NAME / "tmp123.part").write_bytes(b"PK")
    with service_thread(tmp_path / "state", tmp_path / "node"):
        assert made.files == before
