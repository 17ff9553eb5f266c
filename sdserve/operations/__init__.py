"""The job store's operations as typed values.

Each one names its Lua script, its keys and its arguments, and reads the reply. They carry no
connection, so one definition serves the blocking and the asyncio client (store.py). Those on
batches, API keys, lists and webhooks are in modules of their own: batch_operations.py,
key_operations.py, job_list.py, outbox.py.
"""

from sdserve.operations.apps import (
    END_OF_QUEUE,
    PACE_FIELDS,
    Drain,
    ViewApp,
    ViewOutlooks,
    app_outlook,
    app_state,
)
from sdserve.operations.claims import (
    Beat,
    Claim,
    Ending,
    Finish,
    JobProgress,
    Pulse,
    Reap,
    Reaped,
    Release,
)
from sdserve.operations.jobs import (
    Cancel,
    Look,
    Place,
    Seen,
    ViewJob,
    ViewPlaces,
    job_of,
)
from sdserve.operations.operation import (
    Argument,
    Operation,
    script_text,
)
from sdserve.operations.previews import (
    ShowPreview,
    ViewPreview,
    Watch,
)
from sdserve.operations.submission import (
    Admission,
    Standing,
    Submit,
    Submitted,
)
from sdserve.operations.turns import (
    TakeTurn,
    Turn,
)

__all__ = [
    "END_OF_QUEUE",
    "PACE_FIELDS",
    "Admission",
    "Argument",
    "Beat",
    "Cancel",
    "Claim",
    "Drain",
    "Ending",
    "Finish",
    "JobProgress",
    "Look",
    "Operation",
    "Place",
    "Pulse",
    "Reap",
    "Reaped",
    "Release",
    "Seen",
    "ShowPreview",
    "Standing",
    "Submit",
    "Submitted",
    "TakeTurn",
    "Turn",
    "ViewApp",
    "ViewJob",
    "ViewOutlooks",
    "ViewPlaces",
    "ViewPreview",
    "Watch",
    "app_outlook",
    "app_state",
    "job_of",
    "script_text",
]
