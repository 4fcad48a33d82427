"""Who calls: a SharedKey signature, a configured bearer token or the token of a task (spec/rest.md §6)."""

import base64
import binascii
import hmac
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from nodeagent.service.errors import BatchError
from nodeagent.service.rest.authorization import ACCOUNT, Caller
from nodeagent.service.rest.sharedkey import SignedRequest, is_signed
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

    `bearer_token`, if given, is accepted as it stands; `task_tokens` knows those of tasks; `clock` returns the
    present time.
    """

    def __init__(
        self,
        account: str,
        key: str,
        clock: Callable[[], datetime],
        bearer_token: str | None = None,
        task_tokens: TaskTokens | None = None,
    ) -> None:
        self._account = account
        self._key = decode_key(key)
        self._clock = clock
        self._bearer_token = bearer_token
        self._task_tokens = task_tokens

    def check(self, method: str, target: str, headers: Mapping[str, str]) -> Caller:
        """Return who calls. Raises BatchError: 403 `AuthenticationFailed`, 400 `InvalidAuthenticationInfo`.

        `target` is the request line's target as it was sent; `headers` has lower-case names.
        """
        scheme, _, credentials = headers.get("authorization", "").strip().partition(" ")
        if not scheme:
            raise _refused("The Authorization header is missing.")
        match scheme.lower():
            case "sharedkey":
                self._check_shared_key(method, target, headers, credentials.strip())
                return ACCOUNT
            case "bearer":
                return self._bearer(credentials.strip())
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

    def _bearer(self, token: str) -> Caller:
        attempt_id = None if self._task_tokens is None else self._task_tokens.attempt_of(token)
        if attempt_id is not None:
            return Caller(attempt_id)
        self._check_bearer(token)
        return ACCOUNT

    def _check_bearer(self, token: str) -> None:
        if self._bearer_token is None:
            raise _refused("This service accepts no bearer tokens.")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self._bearer_token.encode()):
            raise _refused("The bearer token is not the one of this service.")


def _refused(detail: str) -> BatchError:
    text = (
        "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly "
        "including the signature."
    )
    return BatchError(403, "AuthenticationFailed", text, values=(("AuthenticationErrorDetail", detail),))


def _malformed(detail: str) -> BatchError:
    text = "The authentication information was not provided in the correct format."
    return BatchError(400, "InvalidAuthenticationInfo", text, values=(("AuthenticationErrorDetail", detail),))
