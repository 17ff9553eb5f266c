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

    async def identify(self, text: str | None) -> Caller:
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

    async def count(self, caller: Caller, request: Request) -> None:
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


async def _caller(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
) -> Caller:
    callers: Callers = request.app.state.callers
    if given is None and "authorization" in request.headers:
        # Meant as a key, an empty one say: not anonymous, whose jobs every other without one sees.
        raise UnauthorizedError(is_token_given=True)
    caller = await callers.identify(given.credentials if given else None)
    await callers.count(caller, request)
    return caller


KnownCaller = Annotated[Caller, Depends(_caller)]
