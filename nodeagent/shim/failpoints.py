"""Named points at which a fault test may kill or pause the process; silent unless the environment asks."""

import os
import signal

VARIABLE = "NODEAGENT_FAILPOINT"
_ACTIONS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP}


def _wanted(value: str) -> tuple[str, signal.Signals]:
    name, _, action = value.partition(":")
    if action and action not in _ACTIONS:
        raise ValueError(f"{VARIABLE}: unknown action {action!r}, use one of {sorted(_ACTIONS)}")
    return name, _ACTIONS[action or "kill"]


_name, _signal = _wanted(os.environ.get(VARIABLE, ""))


def hit(name: str) -> None:
    """Kill or pause this process if `NODEAGENT_FAILPOINT=name[:kill|:pause]` names this point."""
    if name == _name:
        os.kill(os.getpid(), _signal)
