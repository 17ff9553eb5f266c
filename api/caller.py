"""Who asks: the API key behind a request, and whose jobs it may see."""

import logging
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.allowances import note_allowances
from api.rate_limit import RateLimiter
from sdserve.api_keys import Role, read_token
from sdserve.async_store import AsyncJobStore
from sdserve.errors import JobNotFoundError, RateLimitError, StoreFullError, UnauthorizedError
from sdserve.jobs import Job
from sdserve.key_operations import ViewKey
from sdserve.limits import Quotas

log = logging.getLogger(__name__)

_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="apiKey",
    bearerFormat="sd_<id>_<secret>",
    description="An API key. Needed where the server asks for one (SD_AUTH); else optional.",
)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whose request this is."""

    client: str = ""  # the key's id; "" is anybody without a key
    is_admin: bool = False
    quotas: Quotas = field(default_factory=Quotas)

    def may_see(self, client: str) -> bool:
        """Whether what belongs to `client` exists for this caller."""
        return self.is_admin or self.client == client

    def see(self, job: Job) -> Job:
        """The job, if it exists for this caller.

        Raises:
            JobNotFoundError: it is another's. The same as for one that never was: that it exists
                is nobody else's business.
        """
        if not self.may_see(job.client):
            raise JobNotFoundError(job.id)
        return job


class Callers:
    """Tells by a token who asks. One read of the store for each request that shows one."""

    def __init__(
        self, store: AsyncJobStore, limiter: RateLimiter, *, is_required: bool, quotas: Quotas
    ) -> None:
        """Let in who has a key; `quotas` are those of a key that has none of its own."""
        self._store = store
        self._limiter = limiter
        self._is_required = is_required
        self._quotas = quotas

    async def admit(self, request: Request) -> Caller:
        """Who asks, counted. Reads nothing but the head of the request.

        Raises:
            UnauthorizedError, RateLimitError, StoreUnavailableError: he is not let in.
        """
        caller = await self._identify(_token(request))
        await self._count(caller, request)
        return caller

    async def sees_details(self, request: Request) -> bool:
        """Whether who asks may know how this server is built: an admin, where keys are asked for.

        Raises:
            UnauthorizedError, StoreUnavailableError: he shows a key that is not, or cannot be known
                to be, valid.
        """
        if not self._is_required:
            return True
        token = _token(request)
        return token is not None and (await self._identify(token)).is_admin

    async def _identify(self, text: str | None) -> Caller:
        """The caller with this token; None: who showed none.

        Raises:
            UnauthorizedError: the token is not, or no longer, valid, or there is none and one is
                required.
            StoreUnavailableError: so nobody is let in.
        """
        if text is None:
            if self._is_required:
                raise UnauthorizedError(is_token_given=False)
            return Caller()
        token = read_token(text)
        if token is None:
            raise UnauthorizedError(is_token_given=True)
        view = await self._store.run(ViewKey(key_id=token.key_id))
        if view.key is None or not view.key.accepts(token.secret, view.now):
            raise UnauthorizedError(is_token_given=True)
        return Caller(
            client=view.key.id,
            is_admin=view.key.role is Role.ADMIN,
            quotas=view.key.quotas.over(self._quotas),
        )

    async def _count(self, caller: Caller, request: Request) -> None:
        """Count a request of this caller.

        Raises:
            RateLimitError: there have been too many.
            StoreUnavailableError: so nobody is let in.
        """
        rate = caller.quotas.rate
        if rate is None:
            return
        try:
            allowance, is_within = await self._limiter.count(caller.client, rate)
        except StoreFullError as error:
            # A store that can count no more takes no jobs either: what is left is to look, and to
            # cancel, which makes room.
            log.warning("%s: a request of %s is not counted: %s", rate, caller.client, error)
            return
        note_allowances(request, [allowance])
        if not is_within:
            raise RateLimitError(f"You have asked {rate}, the limit", allowance.reset or 1)


def _token(request: Request) -> str | None:
    """The token that a request shows (RFC 6750, section 2.1).

    Raises:
        UnauthorizedError: it shows something else. Meant as a key, an empty one say, so he is not
            anonymous, whose jobs every other without one sees.
    """
    given = request.headers.get("authorization")
    if given is None:
        return None
    scheme, _, token = given.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthorizedError(is_token_given=True)
    return token.strip()


async def _sees_details(request: Request) -> bool:
    callers: Callers = request.app.state.callers
    return await callers.sees_details(request)


async def _caller(
    request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
) -> Caller:
    """Whom `KeyCheck` (api/key_check.py) has let in; the scheme is here for the description."""
    caller: Caller = request.state.caller
    return caller


KnownCaller = Annotated[Caller, Depends(_caller)]
SeesDetails = Annotated[bool, Depends(_sees_details)]
