"""The calls about all of one's jobs and what they used, as programs. No I/O."""

from datetime import date

from sdserve.client import answers
from sdserve.client.connection import ANSWER_MARGIN, Connection
from sdserve.client.effects import Emit, Program, Request, Series
from sdserve.client.views import JobView, UsageView
from sdserve.jobs import JobStatus


class AccountCalls:
    """List jobs, read usage."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def jobs(self, *, app: str | None, status: JobStatus | None, page: int) -> Series[JobView]:
        """One request a page, sent when its jobs are wanted."""
        asked = {"limit": str(page)}
        asked |= {"app": app} if app else {}
        asked |= {"status": status.value} if status else {}
        cursor: str | None = None
        while True:
            params = asked | ({"cursor": cursor} if cursor else {})
            request = Request(method="GET", path="/v1/jobs", params=params, silence=ANSWER_MARGIN)
            response = yield from self._connection.send(request)
            for item in answers.json_list(response, "data"):
                yield Emit(value=answers.job_view(str(response.url), item))
            following = answers.json_object(response).get("next_cursor")
            if not following:
                return
            cursor = str(following)

    def usage(
        self, *, by: str, first: date | None, last: date | None, app: str | None
    ) -> Program[UsageView]:
        params = {"by": by}
        params |= {"from": first.isoformat()} if first else {}
        params |= {"to": last.isoformat()} if last else {}
        params |= {"app": app} if app else {}
        request = Request(method="GET", path="/v1/usage", params=params, silence=ANSWER_MARGIN)
        response = yield from self._connection.send(request)
        return answers.usage_view(str(response.url), answers.json_object(response))
