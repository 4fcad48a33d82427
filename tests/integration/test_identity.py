"""Tokens of managed identities, from an endpoint over real HTTP."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules import identity_retry
from nodeagent.transfer.base import IdentityError, TransferSettings
from nodeagent.transfer.identity import Identities
from tests.integration.azurite import free_port
from tests.integration.identity_endpoint import Endpoint, answering, error, running_endpoint

MINE = NodeIdentityReference(resource_id="/subscriptions/s/resourceGroups/g/userAssignedIdentities/mine")
OTHER = NodeIdentityReference(resource_id="/subscriptions/s/resourceGroups/g/userAssignedIdentities/other")
OWN = NodeIdentityReference()


def soon(status: int | None, tries: int, seconds: float, share: float) -> float | None:
    """Ask again when the rule says so, but after a thousandth of the time."""
    wait = identity_retry.pause(status, tries, seconds, share)
    return None if wait is None else wait / 1000


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    """Return a running endpoint that knows one identity."""
    async with running_endpoint() as running:
        running.known.add(MINE.resource_id)
        yield running


@pytest.fixture
async def identities(endpoint: Endpoint) -> AsyncIterator[Identities]:
    """Return the identities of a node with that endpoint."""
    async with Identities(endpoint.url, TransferSettings(), soon).connected() as connected:
        yield connected


async def test_a_token_is_asked_for_as_the_endpoint_wants_it(endpoint: Endpoint, identities: Identities) -> None:
    """With the header that no redirected browser sends, the resource and the identity."""
    assert await identities.token(MINE) == endpoint.given[0]
    request = endpoint.asked[0]
    assert request.headers["Metadata"] == "true"
    assert dict(request.query) == {
        "api-version": "2018-02-01",
        "resource": "https://storage.azure.com/",
        "msi_res_id": MINE.resource_id,
    }


async def test_the_own_identity_of_the_node_has_no_name(endpoint: Endpoint, identities: Identities) -> None:
    """A system-assigned identity is what the endpoint gives if nothing is asked for."""
    assert await identities.token(OWN) == endpoint.given[0]
    assert "msi_res_id" not in endpoint.asked[0].query


async def test_many_who_ask_make_one_request(endpoint: Endpoint, identities: Identities) -> None:
    """Also while the first request is under way; each identity has a token of its own."""
    tokens = await asyncio.gather(*(identities.token(MINE) for _ in range(50)))
    assert await identities.token(MINE) == tokens[0]
    assert set(tokens) == {endpoint.given[0]}
    assert await identities.token(OWN) != tokens[0]
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize(("lasts", "requests"), [(86400, 1), (400, 1), (0, 3)])
async def test_a_token_is_renewed_before_its_end(
    endpoint: Endpoint, identities: Identities, lasts: float, requests: int
) -> None:
    """One that is over is not shown to the storage; one that ends soon is not asked for at every request."""
    endpoint.lasts = lasts
    for _ in range(3):
        await identities.token(MINE)
    assert len(endpoint.asked) == requests


async def test_a_token_is_renewed_five_minutes_before_its_end(
    endpoint: Endpoint, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer that begins now has some time to use it."""
    endpoint.lasts = 3600
    first = await identities.token(MINE)
    import time  # noqa: PLC0415 - the clock that is moved

    real = time.time
    monkeypatch.setattr("nodeagent.transfer.identity.time.time", lambda: real() + 3600 - 330)
    assert await identities.token(MINE) == first
    monkeypatch.setattr("nodeagent.transfer.identity.time.time", lambda: real() + 3600 - 270)
    assert await identities.token(MINE) != first


async def test_who_is_cancelled_while_waiting_costs_the_others_nothing(
    endpoint: Endpoint, identities: Identities
) -> None:
    """The request belongs to nobody in particular."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        asked.set()
        await go_on.wait()
        return await endpoint.answer(request)

    endpoint.script.append(slow)
    first = asyncio.create_task(identities.token(MINE))
    second = asyncio.create_task(identities.token(MINE))
    await asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go_on.set()
    assert await second == endpoint.given[0]
    assert len(endpoint.given) == 1


@pytest.mark.parametrize("status", [404, 410, 429, 500, 503])
async def test_an_endpoint_that_is_busy_is_asked_again(endpoint: Endpoint, identities: Identities, status: int) -> None:
    """As its documentation advises."""
    endpoint.script += [answering(status)] * 2
    assert await identities.token(MINE) == endpoint.given[0]
    assert len(endpoint.asked) == 3


async def test_an_endpoint_that_stays_busy_is_given_up(endpoint: Endpoint, identities: Identities) -> None:
    """And asked anew by the next task."""
    endpoint.script += [answering(503)] * identity_retry.TRIES
    with pytest.raises(IdentityError, match="503") as failed:
        await identities.token(MINE)
    assert failed.value.status == 503
    assert await identities.token(MINE) == endpoint.given[0]


async def test_an_identity_that_is_not_assigned_is_told_at_once(endpoint: Endpoint, identities: Identities) -> None:
    """With its name and the words of the endpoint."""
    with pytest.raises(IdentityError, match=r"other.*Identity not found") as failed:
        await identities.token(OTHER)
    assert failed.value.status == 400
    assert len(endpoint.asked) == 1


async def test_an_endpoint_that_hangs_is_given_up(endpoint: Endpoint) -> None:
    """A try has a deadline, and so have all of them."""

    async def hang(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    endpoint.script += [hang] * 20
    settings = TransferSettings(transfer_idle_seconds=0.05, transfer_seconds=0.5)
    async with Identities(endpoint.url, settings, soon).connected() as identities:
        with pytest.raises(IdentityError, match="no answer") as failed:
            await identities.token(MINE)
    assert failed.value.status is None


async def test_an_endpoint_that_is_not_there_is_told() -> None:
    """Outside of Azure nobody listens."""
    async with Identities(f"http://127.0.0.1:{free_port()}/token", TransferSettings(), soon).connected() as identities:
        with pytest.raises(IdentityError, match=r"127\.0\.0\.1.*[Rr]efused"):
            await identities.token(MINE)


async def test_a_token_is_never_fetched_through_a_proxy(
    endpoint: Endpoint, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy's owner could read it, and the endpoint would answer for another machine."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    assert await identities.token(MINE) == endpoint.given[0]


async def test_a_redirect_is_not_followed(endpoint: Endpoint, identities: Identities) -> None:
    """Nobody else is asked."""

    async def away(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": endpoint.url})

    endpoint.script.append(away)
    with pytest.raises(IdentityError, match="302"):
        await identities.token(MINE)
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    "body", [b"hidden", b"[]", b"{}", b'{"access_token": 5}', b'{"access_token": "a\\nb"}', b"x" * 100_000]
)
async def test_an_answer_without_a_token_is_not_shown(endpoint: Endpoint, identities: Identities, body: bytes) -> None:
    """It may hold a token all the same; it is not asked for again and again, unless it was cut off."""

    async def strange(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    endpoint.script += [strange] * identity_retry.TRIES
    with pytest.raises(IdentityError, match="answer") as failed:
        await identities.token(MINE)
    assert body[:20].decode() not in str(failed.value)


async def test_the_words_of_the_endpoint_are_shown_without_secrets(endpoint: Endpoint, identities: Identities) -> None:
    """Some endpoints repeat what they were asked with."""

    async def talkative(_request: web.Request) -> web.StreamResponse:
        return error(400, "invalid_request", "Authorization was Bearer abcdefghij0123456789")

    endpoint.script.append(talkative)
    with pytest.raises(IdentityError, match=r"Bearer \*\*\*"):
        await identities.token(MINE)


async def test_at_the_end_no_request_is_left(endpoint: Endpoint) -> None:
    """The agent stops while a token is under way: who waits for it is told, and does not wait for ever."""
    asked = asyncio.Event()

    async def hang(_request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    endpoint.script.append(hang)
    async with Identities(endpoint.url, TransferSettings(), soon).connected() as identities:
        waiting = asyncio.create_task(identities.token(MINE))
        await asked.wait()
    for late in (waiting, identities.token(MINE)):
        with pytest.raises(IdentityError, match="stopping"):
            await late
