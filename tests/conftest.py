"""What holds for every test: in CI nothing may be skipped, and hypothesis does not measure a shared machine's speed.

Beside it what the two system tests share, made once per machine and kept: a base system and a folder of wheels.
"""

import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two cores are shared with whatever else runs: an example that takes long says nothing about the code.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples every time: a red CI run can be had again at once.
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test is a failed one in CI: there everything that a test needs can be installed."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {report.longrepr}"
    return report


REPOSITORY = Path(__file__).parents[1]


def _run_script(*argv: str) -> str:
    """Run one of the repository's scripts, return the last line it prints; its own words are the failure's text."""
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        pytest.fail(
            f"{argv[0]} failed ({done.returncode}): {done.stderr.strip() or done.stdout.strip()}", pytrace=False
        )
    return done.stdout.strip().rpartition("\n")[2]


@pytest.fixture(scope="session")
def debian_rootfs() -> Path:
    """The folder of a minimal Debian or Ubuntu with systemd and Python: never changed, only layered over or copied."""
    return Path(_run_script("scripts/debian-rootfs"))


@pytest.fixture(scope="session")
def wheelhouse(debian_rootfs: Path) -> Path:
    """A folder of wheels from which nodeagent installs without a network, made for the Python of `debian_rootfs`."""
    _run_script("scripts/wheelhouse", "build/wheels")
    return REPOSITORY / "build" / "wheels"
