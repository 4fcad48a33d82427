"""Why an agent cannot start or go on. Each error is one clear line for a person, and an exit status.

AgentError
├── StateDirectoryInUse     another agent holds the state directory
├── StateDirectoryNewer     a newer nodeagent wrote it
├── StateDirectoryDamaged   it cannot be understood
├── NotWritable             the state directory or the node root cannot be written
├── WrongNode               the state directory belongs to another node id
├── AddressInUse            the file server's address is taken
├── Refused                 the service refuses this agent for good (key, request)
└── Fenced                  a newer agent acts for this node
"""

EXIT_INTERNAL = 70
EXIT_REFUSED = 77
EXIT_IN_USE = 73
EXIT_NEWER = 76
EXIT_NOT_WRITABLE = 74
EXIT_CONFIGURATION = 78
EXIT_ADDRESS_IN_USE = 69
EXIT_FENCED = 75
"""The exit statuses follow sysexits.h where it has a word for it."""


class AgentError(Exception):
    """The agent cannot start or go on; `exit_status` is what its process ends with."""

    exit_status = EXIT_INTERNAL


class StateDirectoryInUse(AgentError):  # noqa: N818 - named for the situation, as OSError's children are
    """Another agent holds the state directory."""

    exit_status = EXIT_IN_USE


class StateDirectoryNewer(AgentError):  # noqa: N818 - as above
    """A newer version of nodeagent wrote the state directory; going on could destroy what it knows."""

    exit_status = EXIT_NEWER


class StateDirectoryDamaged(AgentError):  # noqa: N818 - as above
    """A file of the state directory cannot be understood; guessing could run a task twice."""

    exit_status = EXIT_CONFIGURATION


class NotWritable(AgentError):  # noqa: N818 - as above
    """A directory that the agent needs cannot be made or written."""

    exit_status = EXIT_NOT_WRITABLE


class WrongNode(AgentError):  # noqa: N818 - as above
    """The state directory belongs to another node id."""

    exit_status = EXIT_CONFIGURATION


class AddressInUse(AgentError):  # noqa: N818 - as above
    """The file server's address is taken."""

    exit_status = EXIT_ADDRESS_IN_USE


class Refused(AgentError):  # noqa: N818 - as above
    """The service refuses this agent, and asking again would not help."""

    exit_status = EXIT_REFUSED


class Fenced(AgentError):  # noqa: N818 - as above
    """A newer agent acts for this node; its tasks are left to it."""

    exit_status = EXIT_FENCED
