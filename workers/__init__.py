"""What does the work: the GPU replica with its engine, and the RQ workers for side work."""

import os

# RQ reads it once, when it is imported: all its keys come under our prefix, for one ACL rule.
RQ_PREFIX = "sd:rq"
os.environ["RQ_KEY_PREFIX"] = RQ_PREFIX
