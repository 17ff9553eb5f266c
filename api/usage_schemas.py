"""What `GET /v1/usage` answers: sums over ended jobs, in JSON and as CSV."""

import csv
import io
from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from sdserve.usage import Usage


class UsageBy(StrEnum):
    """What a row is the sum of."""

    KEY = "key"
    APP = "app"
    DAY = "day"


class UsageAmounts(BaseModel):
    """What jobs used."""

    jobs_succeeded: int
    jobs_failed: int
    jobs_cancelled: int
    images: int = Field(description="of succeeded jobs")
    steps: int = Field(description="denoising steps taken, also by jobs that failed")
    gpu_seconds: float
    cpu_seconds: float
    energy_joules: float = Field(description="of GPU boards; 0 where none tells")
    result_bytes: int = Field(description="of the encoded images that were stored")

    @classmethod
    def of(cls, usage: Usage) -> Self:
        return cls.model_validate(usage.told())


class UsageRow(UsageAmounts):
    """The sum of one group."""

    key: str | None = Field(None, description="with by=key: the key's id, empty without a key")
    app: str | None = Field(None, description="with by=app")
    day: date | None = Field(None, description="with by=day: UTC")


class UsageList(BaseModel):
    """Usage by key, app or day, of the groups that have any, and its total."""

    model_config = ConfigDict(serialize_by_alias=True)

    object: Literal["list"] = "list"
    by: UsageBy
    first: date = Field(alias="from")
    last: date = Field(alias="to")
    data: list[UsageRow]
    total: UsageAmounts

    @classmethod
    def of(cls, by: UsageBy, first: date, last: date, groups: Mapping[str, Usage]) -> Self:
        """`groups` by key's id, app or ISO date."""
        return cls.model_validate(
            {
                "by": by,
                "from": first,
                "to": last,
                "data": [{str(by): name, **groups[name].told()} for name in sorted(groups)],
                "total": sum(groups.values(), Usage()).told(),
            }
        )

    def to_csv(self) -> str:
        """RFC 4180, with a header; without the total, which a sheet makes itself."""
        text = io.StringIO()
        writer = csv.writer(text)
        columns = list(UsageAmounts.model_fields)
        writer.writerow([str(self.by), *columns])
        for row in self.data:
            values = row.model_dump(mode="json")
            writer.writerow([values[self.by], *(values[column] for column in columns)])
        return text.getvalue()
