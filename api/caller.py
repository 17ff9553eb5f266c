"""Who asks: the API key behind a request, and whose jobs it may see."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from sdserve.api_keys import Role, read_token
from sdserve.async_store import AsyncJobStore
from sdserve.errors import JobNotFoundError, UnauthorizedError
from sdserve.jobs import Job
from sdserve.key_operations import ViewKey

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

    def __init__(self, store: AsyncJobStore, *, is_required: bool) -> None:
        self._store = store
        self._is_required = is_required

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
        return Caller(client=view.key.id, is_admin=view.key.role is Role.ADMIN)


async def _caller(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
) -> Caller:
    callers: Callers = request.app.state.callers
    return await callers.identify(given.credentials if given else None)


KnownCaller = Annotated[Caller, Depends(_caller)]
