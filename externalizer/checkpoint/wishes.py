"""Which policy holds for a tree: that of the plan registered for it, else the machine's own file."""

from __future__ import annotations

from externalizer.model.plan import Plan
from externalizer.model.policy import Policy


def policy_of(registered: Plan | None) -> Policy:
    """The policy to plan by, in the hook. Raises UsageError for a policy file that can't be used."""
    if registered is not None:
        return registered.policy
    # A container runtime's static config: nobody has planned. tomllib is only needed then.
    from externalizer.settings import policies

    return policies.system()
