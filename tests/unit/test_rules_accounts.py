"""Which account a task gets, and which uid: pure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.agent.accounts import _is_mapped
from nodeagent.agent.settings import AgentSettings
from nodeagent.agent.testing import task
from nodeagent.model.pool import PoolCreate
from nodeagent.model.protocol import AttemptKind
from nodeagent.rules import accounts
from nodeagent.rules.accounts import AccountError, Held, UidRange, Wanted
from nodeagent.rules.supported import unsupported_pool
from nodeagent.service import work

UIDS = UidRange(100, 104, 100)


def of_task(name: str) -> Wanted:
    """The account of a task in task scope."""
    return Wanted(accounts.holder_of(name))


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.booleans()), max_size=40))
def test_no_two_tasks_have_one_uid_and_reuse_is_as_late_as_possible(steps: list[tuple[str, bool]]) -> None:
    """Whatever begins and ends: a uid has one holder, a holder keeps its uid, and the longest free one goes first."""
    held: dict[int, Held] = {}
    order = 0
    for name, begins in steps:
        wanted = of_task(name)
        mine = [row.uid for row in held.values() if row.holder == wanted.holder]
        if not begins:
            for uid in mine:
                order += 1
                held[uid] = Held(uid, None, order)
            continue
        busy = {row.uid for row in held.values() if row.holder is not None}
        if not mine and len(busy) == UIDS.last - UIDS.first:
            with pytest.raises(AccountError, match="uid_range"):
                accounts.choose_uid(wanted, list(held.values()), UIDS)
            continue
        uid = accounts.choose_uid(wanted, list(held.values()), UIDS)
        assert uid in UIDS
        assert uid != UIDS.first
        assert mine in ([], [uid])
        if not mine:
            assert uid not in busy
            free = [row for row in held.values() if row.holder is None]
            if uid in held:
                assert len(held) == UIDS.last - UIDS.first, "a uid is used again while there are new ones"
                assert held[uid].released == min(row.released for row in free)
        held[uid] = Held(uid, wanted.holder, held[uid].released if uid in held else 0)


def test_a_running_task_keeps_its_uid_when_the_range_is_another() -> None:
    """But a named user gets a new one: it must not be somebody else's."""
    held = [Held(90, accounts.holder_of("a")), Held(91, "user:carol")]
    assert accounts.choose_uid(of_task("a"), held, UIDS) == 90
    assert accounts.choose_uid(Wanted("user:carol", "carol"), held, UIDS) == 101


def test_a_user_that_the_pool_does_not_have_is_told_by_name() -> None:
    """With what would be right."""
    assignment = task("a", "true")
    identity = assignment.work.user_identity.model_copy(update={"auto_user": None, "username": "dora"})
    lost = assignment.model_copy(update={"work": assignment.work.model_copy(update={"user_identity": identity})})
    with pytest.raises(AccountError, match="no user account 'dora': add it to the pool's userAccounts"):
        accounts.wanted(lost)


def test_only_directories_of_preparation_and_start_are_open_for_all() -> None:
    """Spec/node.md §1."""
    modes = {kind: accounts.directory_mode(kind) for kind in AttemptKind}
    assert {kind for kind, mode in modes.items() if mode == 0o755} == {AttemptKind.START, AttemptKind.JOB_PREPARATION}
    assert set(modes.values()) == {0o755, 0o770}


def pool(*user_accounts: dict[str, object]) -> PoolCreate:
    """A pool with user accounts, each with a password."""
    given_accounts = [{"password": "SECRET"} | account for account in user_accounts]
    return PoolCreate.model_validate({"id": "p", "vmSize": "x", "userAccounts": given_accounts})


@pytest.mark.parametrize(
    ("account", "told"),
    [
        ({"name": "a", "linuxUserConfiguration": {"uid": 1}}, "uid and gid"),
        ({"name": "a" * 21}, "20 characters"),
        ({"name": "a:b"}, "pattern"),
        ({"name": "a", "linuxUserConfiguration": {"uid": -1, "gid": 1}}, "greater"),
    ],
)
def test_a_user_account_that_cannot_be_is_refused(account: dict[str, object], told: str) -> None:
    """When the pool is made, with what is wrong."""
    with pytest.raises(ValueError, match=told):
        pool(account)


def test_two_accounts_of_one_name_are_refused() -> None:
    """Nobody could tell which one a task means."""
    with pytest.raises(ValueError, match="different names"):
        pool({"name": "a"}, {"name": "a"})


def test_what_a_linux_node_cannot_give_is_refused_by_name() -> None:
    """Windows settings, and a uid for an administrator, who is uid 0."""
    fancy = pool(
        {"name": "a", "linuxUserConfiguration": {"uid": 5, "gid": 5}},
        {"name": "b", "windowsUserConfiguration": {"loginMode": "batch"}},
        {"name": "c", "elevationLevel": "admin", "linuxUserConfiguration": {"uid": 5, "gid": 5}},
    )
    assert unsupported_pool(fancy) == [
        "userAccounts[1].windowsUserConfiguration",
        "userAccounts[2].linuxUserConfiguration.uid",
    ]


def test_a_node_is_told_of_a_named_user_without_its_password_and_key() -> None:
    """Only name, level and numbers."""
    keyed: dict[str, object] = {"name": "a", "linuxUserConfiguration": {"uid": 5, "gid": 6, "sshPrivateKey": "SECRET"}}
    spec = pool(keyed)
    told = work.named_user(spec.user_accounts or (), "a")
    assert told is not None
    assert (told.uid, told.gid) == (5, 6)
    assert "SECRET" not in told.to_json()
    assert work.named_user(spec.user_accounts or (), "b") is None


@pytest.mark.parametrize(
    ("text", "mapped"),
    [
        ("         0          0 4294967295\n", True),
        ("         0     100000      65536\n", True),
        ("         0       1000          1\n", False),
        ("         0       1000          1\n         1     100000        200\n", True),
        ("", False),
    ],
)
def test_a_user_namespace_has_the_range_or_not(text: str, *, mapped: bool) -> None:
    """As /proc/self/uid_map tells."""
    assert _is_mapped(text, 100, 104) is mapped


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"slots": 4, "uid_range": (100, 103)}, "one for each slot"),
        ({"slots": 1, "uid_range": (200, 100)}, "lowest first"),
        ({"slots": 1, "uid_range": (0, 100)}, "greater"),
        ({"slots": 1, "uid_range": (100, 200), "gid": 150}, "gid must not be"),
    ],
)
def test_a_range_that_cannot_work_is_refused(settings: dict[str, object], told: str) -> None:
    """With what would be right."""
    with pytest.raises(ValueError, match=told):
        AgentSettings.model_validate({"node_key": "k"} | settings)
