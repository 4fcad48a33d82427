"""Who calls: a SharedKey signature, or the bearer token of the settings, an issuer or a task (spec/rest.md §6)."""

import base64
import binascii
import hmac
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import monotonic
from urllib.parse import urlsplit

from nodeagent.service.errors import BatchError
from nodeagent.service.rest.authorization import ACCOUNT, Caller
from nodeagent.service.rest.bearer import Issuer, IssuerUnreachableError, OidcTokens, TokenRefusedError
from nodeagent.service.rest.sharedkey import SignedRequest, is_signed
from nodeagent.service.settings import ServiceSettings, is_loopback
from nodeagent.service.task_tokens import TaskTokens

CLOCK_SKEW = timedelta(minutes=15)
"""A signed date may be this far from the service's clock, either way."""


def decode_key(key: str) -> bytes:
    """Return the account key's bytes. Raises ValueError if it is not base64."""
    try:
        return base64.b64decode(key, validate=True)
    except binascii.Error as error:
        raise ValueError("the account key must be base64 text") from error


class Authenticator:
    """Checks the `Authorization` header of requests to one account.

    `bearer_token`, if given, is accepted as it stands; `task_tokens` knows those of tasks, `oidc` those of an issuer;
    `clock` returns the present time. With `no_auth` whoever is no browser may do everything.
    """

    def __init__(
        self,
        account: str,
        key: str,
        clock: Callable[[], datetime],
        bearer_token: str | None = None,
        task_tokens: TaskTokens | None = None,
        *,
        oidc: OidcTokens | None = None,
        no_auth: bool = False,
    ) -> None:
        self._account = account
        self._key = decode_key(key)
        self._clock = clock
        self._bearer_token = bearer_token
        self._task_tokens = task_tokens
        self._oidc = oidc
        self._no_auth = no_auth

    async def check(self, method: str, target: str, headers: Mapping[str, str]) -> Caller:
        """Return who calls.

        Raises BatchError: 403 `AuthenticationFailed`, 400 `InvalidAuthenticationInfo`, 503 `ServerBusy` if the issuer
        of tokens cannot be reached. `target` is the request line's target as it was sent; `headers` has lower-case
        names.
        """
        scheme, _, credentials = headers.get("authorization", "").strip().partition(" ")
        if self._no_auth:
            return self._anybody(headers, credentials.strip())
        if not scheme:
            raise _refused("The Authorization header is missing.")
        match scheme.lower():
            case "sharedkey":
                self._check_shared_key(method, target, headers, credentials.strip())
                return ACCOUNT
            case "bearer":
                return await self._bearer(credentials.strip())
            case _:
                raise _malformed("The Authorization header must begin with 'SharedKey' or 'Bearer'.")

    def _check_shared_key(self, method: str, target: str, headers: Mapping[str, str], credentials: str) -> None:
        account, colon, given = credentials.partition(":")
        if not account or not colon or not given:
            raise _malformed("The Authorization header must have the form 'SharedKey account:signature'.")
        if account.lower() != self._account.lower():
            raise _refused("The account in the Authorization header is not an account of this service.")
        self._check_date(headers)
        path, _, query = target.partition("?")
        if not is_signed(SignedRequest(method, path, query, headers), account, self._key, given):
            raise _refused("The signature in the Authorization header does not match the request.")

    def _check_date(self, headers: Mapping[str, str]) -> None:
        text = headers.get("ocp-date") or headers.get("date")
        if not text:
            raise _refused("A request signed with a shared key needs an ocp-date or Date header.")
        try:
            sent = parsedate_to_datetime(text)
        except ValueError as error:
            raise _refused("The ocp-date or Date header is not an RFC 1123 date.") from error
        if sent.tzinfo is None:
            sent = sent.replace(tzinfo=UTC)
        if abs(self._clock() - sent) > CLOCK_SKEW:
            raise _refused("The date of the request is more than 15 minutes from the clock of the service.")

    def _anybody(self, headers: Mapping[str, str], token: str) -> Caller:
        """Return who calls where nobody must say it; a task that shows its token keeps to its own job.

        A web page that the user looks at could send requests here too, also under a name of its own that leads to
        loopback: browsers tell where they come from, and under which name they found us.
        """
        if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
            raise _refused("This service takes no requests of web pages (no_auth).")
        if not is_loopback(_host(headers.get("host", ""))):
            raise _refused("This service must be called by a name of loopback (no_auth).")
        attempt_id = None if self._task_tokens is None else self._task_tokens.attempt_of(token)
        return Caller(kind="nobody") if attempt_id is None else Caller(attempt_id, "task")

    async def _bearer(self, token: str) -> Caller:
        attempt_id = None if self._task_tokens is None else self._task_tokens.attempt_of(token)
        if attempt_id is not None:
            return Caller(attempt_id, "task")
        if self._is_configured(token):
            return Caller(kind="bearer")
        if self._oidc is None:
            text = "accepts no bearer tokens" if self._bearer_token is None else "has another bearer token"
            raise _refused(f"This service {text}.")
        try:
            await self._oidc.check(token)
        except TokenRefusedError as error:
            raise _refused(str(error)) from None
        except IssuerUnreachableError:
            text = "The server is currently unable to receive requests. Please retry your request."
            detail = (("AuthenticationErrorDetail", "The issuer of bearer tokens cannot be reached."),)
            raise BatchError(503, "ServerBusy", text, detail) from None
        return Caller(kind="oidc")

    def _is_configured(self, token: str) -> bool:
        if self._bearer_token is None:
            return False
        return hmac.compare_digest(token.encode("utf-8", "replace"), self._bearer_token.encode())


def authenticator_of(
    settings: ServiceSettings, task_tokens: TaskTokens, clock: Callable[[], datetime]
) -> Authenticator:
    """Return the authenticator that the settings describe."""
    token, oidc = settings.bearer_token, None
    if settings.oidc_issuer is not None and settings.oidc_audience is not None:
        issuer = Issuer(
            settings.oidc_issuer, settings.oidc_audience, settings.oidc_jwks_url, frozenset(settings.oidc_subjects)
        )
        oidc = OidcTokens(issuer, monotonic)
    return Authenticator(
        settings.account,
        settings.key.get_secret_value(),
        clock,
        None if token is None else token.get_secret_value(),
        task_tokens,
        oidc=oidc,
        no_auth=settings.no_auth,
    )


def _host(header: str) -> str:
    """Return the name or address of a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _refused(detail: str) -> BatchError:
    text = (
        "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly "
        "including the signature."
    )
    return BatchError(403, "AuthenticationFailed", text, values=(("AuthenticationErrorDetail", detail),))


def _malformed(detail: str) -> BatchError:
    text = "The authentication information was not provided in the correct format."
    return BatchError(400, "InvalidAuthenticationInfo", text, values=(("AuthenticationErrorDetail", detail),))
