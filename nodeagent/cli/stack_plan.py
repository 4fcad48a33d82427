"""From settings to the plan of a local stack."""

import os
import tempfile
from pathlib import Path

from pydantic import SecretStr

from nodeagent.agent.settings import AgentSettings
from nodeagent.cli.settings import Sources
from nodeagent.local.folders import Folders
from nodeagent.local.settings import LocalSettings
from nodeagent.local.stack import Plan
from nodeagent.observe.log import LogSettings
from nodeagent.service.settings import ServiceSettings


def plan_of(
    found: Sources, local: LocalSettings, log: LogSettings, *, state_dir: Path, loose: bool | None = None
) -> Plan:
    """Return the plan; with an ephemeral setting the state lies in a new temporary folder.

    What `[local]` decides (address, account, folders, TLS, authentication) wins over `[service]`; the rest of
    `[service]` holds. Agents read `[agent]` and their variables themselves; `agent.accounts` is "none" here unless
    somebody sets it. Raises SettingsError.
    """
    folder = Path(tempfile.mkdtemp(prefix="nodeagent-")) if local.ephemeral else state_dir.absolute()
    section = found.section("service", ServiceSettings, {"loose": loose}).without(
        "host",
        "port",
        "account",
        "key",
        "state_dir",
        "node_key_file",
        "ephemeral",
        "tls",
        "tls_certificate",
        "tls_key",
        "no_auth",
        "trace_http",
    )
    service = section.build(
        port=local.port,
        tls=local.tls,
        no_auth=local.no_auth,
        trace_http=local.trace_http,
        account=local.account,
        key=SecretStr(local.key.get_secret_value()),
        state_dir=Folders(folder).service,
    )
    options = [f"--log-level={log.level.value}"]
    if found.file is not None:
        options.append(f"--config={found.file.absolute()}")
    accounts = found.section("agent", AgentSettings).given.get("accounts")
    if accounts is None:  # the state home of root is closed to everybody else; who debugs a job is one person
        options.append("--accounts=none")
    users = accounts is not None and accounts.value != "none" and os.geteuid() == 0
    return Plan(service, folder, local.pool, local.nodes, local.slots, options, ephemeral=local.ephemeral, users=users)
