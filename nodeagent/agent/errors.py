"""Why an agent cannot start or go on. Each error is one clear line for a person, and an exit status (docs/cli.md).

AgentError                3  a fault of nodeagent itself
├── AccountsError         2  tasks cannot be given users of their own here as the settings want it
├── WrongNodeError        2  the state directory belongs to another node id
├── LimitsUnavailableError 2  the kernel cannot keep a limit of the settings
├── DamagedStateError     3  a file of the state directory cannot be understood
├── AddressInUseError     4  the file server's address is taken
├── StateInUseError       5  another agent holds the state directory
├── NewerStateError       6  a newer nodeagent wrote it
├── UnwritableError       7  a directory cannot be made or written
├── RefusedError          8  the service refuses this agent for good
├── FencedError           9  a newer agent acts for this node
├── RemovedError          10 a user took the node out of its pool
└── CommandFailedError    3  the node could not be rebooted or reimaged
"""


class AgentError(Exception):
    """The agent cannot start or go on; `exit_status` is what its process ends with."""

    exit_status = 3


class AccountsError(AgentError):
    """The settings ask for users of tasks that this machine cannot give."""

    exit_status = 2


class WrongNodeError(AgentError):
    """The state directory belongs to another node id."""

    exit_status = 2


class LimitsUnavailableError(AgentError):
    """The kernel cannot keep a limit of the settings on this machine; running without it would be worse."""

    exit_status = 2


class DamagedStateError(AgentError):
    """A file of the state directory cannot be understood; guessing could run a task twice."""


class AddressInUseError(AgentError):
    """The file server's address is taken."""

    exit_status = 4


class StateInUseError(AgentError):
    """Another agent holds the state directory."""

    exit_status = 5


class NewerStateError(AgentError):
    """A newer version of nodeagent wrote the state directory; going on could destroy what it knows."""

    exit_status = 6


class UnwritableError(AgentError):
    """A directory that the agent needs cannot be made or written."""

    exit_status = 7


class RefusedError(AgentError):
    """The service refuses this agent, and asking again would not help."""

    exit_status = 8


class RemovedError(AgentError):
    """A user took the node out of its pool: it has ended all that ran, and does not come back by itself."""

    exit_status = 10


class CommandFailedError(AgentError):
    """The node could not be rebooted or reimaged; the next life of the agent tries again."""


class FencedError(AgentError):
    """A newer agent acts for this node; its tasks are left to it."""

    exit_status = 9
