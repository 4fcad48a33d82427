"""How application packages are named: references, directories, environment variables (spec/node.md §6). Pure."""

import re
from collections.abc import Sequence
from datetime import datetime

from nodeagent.model.protocol import ApplicationPackage

VARIABLE_PREFIX = "AZ_BATCH_APP_PACKAGE_"

_APPLICATION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VERSION = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TO_UNDERSCORE = str.maketrans(".-#", "___")


def id_problem(application_id: str) -> str | None:
    """Return what is wrong with the id of an application; None if nothing is."""
    if _APPLICATION_ID.fullmatch(application_id):
        return None
    return "an application id has 1 to 64 letters, digits, hyphens and underscores"


def version_problem(version: str) -> str | None:
    """Return what is wrong with a version; None if nothing is. `.` and `..` name directories, so they are refused."""
    if _VERSION.fullmatch(version) and version.strip("."):
        return None
    return "a version has 1 to 64 letters, digits, dots, hyphens and underscores, and not only dots"


def reference(application_id: str, version: str | None) -> str:
    """Return a reference as errors show it: `blender:2.80`, or `blender` where no version is given."""
    return f"{application_id}:{version}" if version else application_id


def directory_name(package: ApplicationPackage, installed: datetime) -> str:
    """Return `<id><version><yyyy-MM-dd-HH-mm>`, e.g. `ffmpeg4.12019-01-15-09-16`."""
    return f"{package.application_id}{package.version}{installed:%Y-%m-%d-%H-%M}"


def variables(packages: Sequence[tuple[ApplicationPackage, str]]) -> dict[str, str]:
    """Return the variables of the packages that one pool or one task refers to, with their absolute directories.

    Each package has four: with and without its version, as it is spelled and in upper case. Of several versions of
    an application the default is what the variables without a version name, else the one that is referred to last.
    Those of a task win over those of its pool: `pool | task`.
    """
    found: dict[str, str] = {}
    for package, directory in sorted(packages, key=lambda item: item[0].is_default):
        application, version = _part(package.application_id), _part(package.version)
        for name in (application, f"{application}_{version}"):
            found[VARIABLE_PREFIX + name] = directory
            found[VARIABLE_PREFIX + name.upper()] = directory
    return found


def _part(text: str) -> str:
    return text.translate(_TO_UNDERSCORE)
