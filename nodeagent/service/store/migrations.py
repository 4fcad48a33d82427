"""The schema, as numbered migrations; `PRAGMA user_version` says how many have been applied."""

import sqlite3

_FIRST = """
CREATE TABLE pools (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    id TEXT NOT NULL,
    spec TEXT NOT NULL,
    vm_size TEXT NOT NULL,
    state TEXT NOT NULL,
    state_time INTEGER NOT NULL,
    allocation_state TEXT NOT NULL,
    allocation_state_time INTEGER NOT NULL,
    resize_errors TEXT,
    resize_deadline INTEGER,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL
);
CREATE INDEX pools_resizing ON pools (resize_deadline) WHERE resize_deadline IS NOT NULL;

CREATE TABLE nodes (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    pool_num INTEGER NOT NULL REFERENCES pools (num),
    key TEXT NOT NULL UNIQUE,
    id TEXT NOT NULL,
    state TEXT NOT NULL,
    state_time INTEGER NOT NULL,
    scheduling_state TEXT NOT NULL,
    allocated INTEGER NOT NULL,
    booted INTEGER,
    boot_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    instance_id TEXT NOT NULL,
    slots INTEGER NOT NULL,
    free_slots INTEGER NOT NULL CHECK (free_slots >= 0 AND free_slots <= slots),
    running_tasks INTEGER NOT NULL DEFAULT 0,
    running_slots INTEGER NOT NULL DEFAULT 0,
    total_tasks_run INTEGER NOT NULL DEFAULT 0,
    total_tasks_succeeded INTEGER NOT NULL DEFAULT 0,
    cores INTEGER NOT NULL,
    hostname TEXT NOT NULL,
    ip_address TEXT NOT NULL,
    root_directory TEXT NOT NULL,
    agent_version TEXT NOT NULL,
    agent_updated INTEGER NOT NULL,
    file_server_url TEXT NOT NULL,
    file_server_token TEXT NOT NULL,
    heartbeat INTEGER NOT NULL,
    host TEXT
);
CREATE INDEX nodes_of_pool ON nodes (pool_num, key);

CREATE TABLE jobs (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    id TEXT NOT NULL,
    spec TEXT NOT NULL,
    pool_key TEXT NOT NULL,
    pool_id TEXT NOT NULL,
    priority INTEGER NOT NULL,
    max_parallel_tasks INTEGER NOT NULL,
    state TEXT NOT NULL,
    state_time INTEGER NOT NULL,
    previous_state TEXT,
    previous_state_time INTEGER,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    ended INTEGER,
    deadline INTEGER,
    terminate_reason TEXT,
    release_begun INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_to_schedule ON jobs (pool_key, priority DESC, num) WHERE state = 'active';
CREATE INDEX jobs_with_deadline ON jobs (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX jobs_deleting ON jobs (num) WHERE state = 'deleting';

CREATE TABLE job_counts (
    job_num INTEGER PRIMARY KEY REFERENCES jobs (num) ON DELETE CASCADE,
    active INTEGER NOT NULL DEFAULT 0,
    preparing INTEGER NOT NULL DEFAULT 0,
    running INTEGER NOT NULL DEFAULT 0,
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    active_slots INTEGER NOT NULL DEFAULT 0,
    preparing_slots INTEGER NOT NULL DEFAULT 0,
    running_slots INTEGER NOT NULL DEFAULT 0,
    succeeded_slots INTEGER NOT NULL DEFAULT 0,
    failed_slots INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE tasks (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    job_num INTEGER NOT NULL REFERENCES jobs (num),
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    required_slots INTEGER NOT NULL,
    state TEXT NOT NULL,
    state_time INTEGER NOT NULL,
    previous_state TEXT,
    previous_state_time INTEGER,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    attempt_num INTEGER,
    system_task_version INTEGER NOT NULL DEFAULT 0,
    start_time INTEGER,
    end_time INTEGER,
    exit_code INTEGER,
    result TEXT,
    container_info TEXT,
    failure_info TEXT,
    retry_count INTEGER NOT NULL DEFAULT 0,
    last_retry_time INTEGER,
    requeue_count INTEGER NOT NULL DEFAULT 0,
    last_requeue_time INTEGER,
    node_num INTEGER,
    node_id TEXT,
    pool_id TEXT,
    task_root_directory TEXT,
    UNIQUE (job_num, key)
);
CREATE INDEX tasks_ready ON tasks (job_num, num) WHERE state = 'active' AND attempt_num IS NULL;
CREATE INDEX tasks_of_node ON tasks (node_num, state_time) WHERE node_num IS NOT NULL;

CREATE TABLE task_specs (
    task_num INTEGER PRIMARY KEY REFERENCES tasks (num) ON DELETE CASCADE,
    spec TEXT NOT NULL
);

CREATE TABLE attempts (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    job_num INTEGER NOT NULL,
    task_num INTEGER,
    task_key TEXT NOT NULL,
    node_num INTEGER NOT NULL,
    message_number INTEGER,
    state TEXT NOT NULL,
    last_seq INTEGER NOT NULL DEFAULT 0,
    slots INTEGER NOT NULL,
    slots_held INTEGER NOT NULL,
    stop_reason TEXT,
    detached INTEGER NOT NULL DEFAULT 0,
    remove_files INTEGER NOT NULL DEFAULT 0,
    assigned INTEGER NOT NULL,
    start_time INTEGER,
    end_time INTEGER,
    outcome TEXT
);
CREATE INDEX attempts_live_of_job ON attempts (job_num) WHERE state IN ('assigned', 'running');
CREATE INDEX attempts_live_of_node ON attempts (node_num) WHERE state IN ('assigned', 'running') OR slots_held > 0;
CREATE INDEX attempts_of_task ON attempts (task_num);
CREATE INDEX attempts_of_job ON attempts (job_num);

CREATE TABLE messages (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    node_num INTEGER NOT NULL REFERENCES nodes (num) ON DELETE CASCADE,
    body TEXT NOT NULL
);
CREATE INDEX messages_of_node ON messages (node_num, number);

CREATE TABLE job_nodes (
    job_num INTEGER NOT NULL REFERENCES jobs (num) ON DELETE CASCADE,
    node_num INTEGER NOT NULL,
    node_key TEXT NOT NULL,
    node_id TEXT NOT NULL,
    pool_id TEXT NOT NULL,
    ineligible INTEGER NOT NULL DEFAULT 0,
    had_task INTEGER NOT NULL DEFAULT 0,
    session_ended INTEGER NOT NULL DEFAULT 0,
    prep_needed INTEGER NOT NULL DEFAULT 1,
    prep_attempt TEXT,
    prep_state TEXT,
    prep_start_time INTEGER,
    prep_end_time INTEGER,
    prep_exit_code INTEGER,
    prep_result TEXT,
    prep_container_info TEXT,
    prep_failure_info TEXT,
    prep_root_directory TEXT,
    prep_retry_count INTEGER NOT NULL DEFAULT 0,
    prep_last_retry_time INTEGER,
    release_attempt TEXT,
    release_state TEXT,
    release_start_time INTEGER,
    release_end_time INTEGER,
    release_exit_code INTEGER,
    release_result TEXT,
    release_container_info TEXT,
    release_failure_info TEXT,
    release_root_directory TEXT,
    PRIMARY KEY (job_num, node_num)
);
CREATE INDEX job_nodes_of_node ON job_nodes (node_num);

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    record TEXT NOT NULL
);
"""

_DEPENDENCIES = """
ALTER TABLE tasks ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;
DROP INDEX tasks_ready;
CREATE INDEX tasks_ready ON tasks (job_num, num) WHERE state = 'active' AND attempt_num IS NULL AND waits = 0;

CREATE TABLE task_waits (
    task_num INTEGER PRIMARY KEY REFERENCES tasks (num) ON DELETE CASCADE,
    job_num INTEGER NOT NULL,
    place INTEGER NOT NULL,
    key TEXT,
    number INTEGER
);
CREATE INDEX task_waits_for_id ON task_waits (job_num, key) WHERE key IS NOT NULL;
CREATE INDEX task_waits_for_number ON task_waits (job_num, number) WHERE number IS NOT NULL;

CREATE TABLE satisfied (
    job_num INTEGER NOT NULL REFERENCES jobs (num) ON DELETE CASCADE,
    key TEXT NOT NULL,
    number INTEGER,
    until INTEGER,
    PRIMARY KEY (job_num, key)
) WITHOUT ROWID;
CREATE INDEX satisfied_numbers ON satisfied (job_num, number, until) WHERE number IS NOT NULL;
"""

_FILES = """
CREATE TABLE applications (
    key TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    display_name TEXT,
    default_version_key TEXT
) WITHOUT ROWID;

CREATE TABLE application_packages (
    application_key TEXT NOT NULL REFERENCES applications (key) ON DELETE CASCADE,
    version_key TEXT NOT NULL,
    version TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    added INTEGER NOT NULL,
    PRIMARY KEY (application_key, version_key)
) WITHOUT ROWID;
CREATE INDEX application_packages_of_content ON application_packages (sha256);

CREATE TABLE task_logs (
    attempt_num INTEGER NOT NULL REFERENCES attempts (num) ON DELETE CASCADE,
    name TEXT NOT NULL,
    size INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    tail BLOB NOT NULL,
    PRIMARY KEY (attempt_num, name)
);

ALTER TABLE nodes ADD COLUMN errors TEXT;
"""

_NO_SECRETS = """
UPDATE pools SET spec = json_set(spec, '$.userAccounts', json((
    SELECT json_group_array(json(
        json_remove(json_set(value, '$.password', ''), '$.linuxUserConfiguration.sshPrivateKey')
    ))
    FROM json_each(pools.spec, '$.userAccounts')
))) WHERE json_type(spec, '$.userAccounts') = 'array';

UPDATE pools SET spec = json_set(
    spec, '$.virtualMachineConfiguration.containerConfiguration.containerRegistries', json((
        SELECT json_group_array(json(json_remove(value, '$.password')))
        FROM json_each(pools.spec, '$.virtualMachineConfiguration.containerConfiguration.containerRegistries')
    ))
) WHERE json_type(spec, '$.virtualMachineConfiguration.containerConfiguration.containerRegistries') = 'array';
"""
"""Passwords and keys of pools that nothing uses: `rules.pool_secrets` keeps them out from here on."""

_NODES = """
CREATE TABLE start_tasks (
    node_num INTEGER PRIMARY KEY REFERENCES nodes (num) ON DELETE CASCADE,
    attempt_id TEXT NOT NULL UNIQUE,
    message_number INTEGER NOT NULL,
    spec TEXT NOT NULL,
    completed INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    info TEXT
);

CREATE TABLE removed_nodes (
    instance_id TEXT PRIMARY KEY,
    removed INTEGER NOT NULL
) WITHOUT ROWID;

ALTER TABLE nodes ADD COLUMN command TEXT;
ALTER TABLE nodes ADD COLUMN command_id TEXT;
ALTER TABLE nodes ADD COLUMN command_sent INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN disabled_by TEXT;
"""

_PREEMPTION = """
CREATE INDEX jobs_preemptible ON jobs (pool_key, priority)
    WHERE state = 'active' AND json_extract(spec, '$.allowTaskPreemption') = 1;
"""

_DEDICATED = """
ALTER TABLE nodes ADD COLUMN is_dedicated INTEGER NOT NULL DEFAULT 1;
"""

_JOB_SCHEDULES = """
CREATE TABLE job_schedules (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    id TEXT NOT NULL,
    spec TEXT NOT NULL,
    do_not_run_until INTEGER,
    do_not_run_after INTEGER,
    state TEXT NOT NULL,
    state_time INTEGER NOT NULL,
    previous_state TEXT,
    previous_state_time INTEGER,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    ended INTEGER,
    last_number INTEGER NOT NULL DEFAULT 0,
    last_run INTEGER,
    wake INTEGER,
    force INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX job_schedules_to_wake ON job_schedules (wake) WHERE wake IS NOT NULL;
"""

_AUTO_SCALE = """
ALTER TABLE pools ADD COLUMN auto_scale_run TEXT;
ALTER TABLE pools ADD COLUMN auto_scale_due INTEGER;
ALTER TABLE pools ADD COLUMN auto_scale_enabled INTEGER;
CREATE INDEX pools_scaling ON pools (auto_scale_due) WHERE auto_scale_due IS NOT NULL;

CREATE TABLE pool_samples (
    pool_num INTEGER NOT NULL REFERENCES pools (num) ON DELETE CASCADE,
    at INTEGER NOT NULL,
    sample TEXT NOT NULL,
    PRIMARY KEY (pool_num, at)
) WITHOUT ROWID;
"""

MIGRATIONS = (_FIRST, _DEPENDENCIES, _FILES, _NO_SECRETS, _NODES, _PREEMPTION, _DEDICATED, _JOB_SCHEDULES, _AUTO_SCALE)
"""Each is applied once, in a transaction of its own; an applied one is never edited."""


class NewerDatabaseError(RuntimeError):
    """The database was written by a newer version of nodeagent."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"the service's database has schema version {found}, this version of nodeagent knows {known}: "
            "use the newer nodeagent, or another state folder"
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the migrations that are missing. Raises NewerDatabaseError."""
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > len(MIGRATIONS):
        raise NewerDatabaseError(found, len(MIGRATIONS))
    for number in range(found, len(MIGRATIONS)):
        connection.executescript(f"BEGIN IMMEDIATE;{MIGRATIONS[number]};PRAGMA user_version={number + 1};COMMIT;")
