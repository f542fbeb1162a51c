"""Which policy a dump follows, from pre-dump to its end.

That of the plan that was registered for the process; else that of the plan.json beside criu's option file;
else the machine's own file. pre-dump writes it into the image directory, bound to the running criu, for
post-dump: whoever runs `externalize PID` meanwhile registers another plan.
"""

from __future__ import annotations

import contextlib
import os

import msgspec

from externalizer.checkpoint import identity
from externalizer.criu import images
from externalizer.errors import Refused
from externalizer.kernel import safefs
from externalizer.model.plan import Plan
from externalizer.model.policy import Policy
from externalizer.model.process import TaskKey

FILE = "externalizer-policy.json"


class _Wish(msgspec.Struct, frozen=True):
    criu: TaskKey
    policy: Policy


def policy_of(target: TaskKey, registered: Plan | None, criu: int) -> Policy:
    """The policy to plan by, at pre-dump. Raises UsageError for a policy file that can't be used."""
    for plan in (registered, identity.planned_beside_config(criu)):
        if plan is not None and TaskKey(plan.target.pid, plan.target.starttime) == target:
            return plan.policy
    # A container runtime's static config: nobody has planned. tomllib is only needed then.
    from externalizer.settings import policies

    return policies.system()


def store(dirfd: int, criu: TaskKey, policy: Policy) -> None:
    """Keep the policy for post-dump. Raises UsageError."""
    safefs.write_file(dirfd, FILE, msgspec.json.encode(_Wish(criu, policy)))


def stored(dirfd: int, criu: TaskKey) -> Policy:
    """The policy that pre-dump planned by. Raises Refused where it is not that of this criu."""
    raw = images.read_optional(dirfd, FILE)
    try:
        wish = msgspec.json.decode(raw or b"", type=_Wish)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        wish = None
    if wish is None or wish.criu != criu:
        raise Refused(
            f"{FILE} in the image directory is missing, damaged, or that of another dump",
            why="it says what shall become of the sockets",
            hint="dump again, with no other dump into the same directory",
        )
    return wish.policy


def forget(dirfd: int) -> None:
    """Remove it, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(FILE, dir_fd=dirfd)
