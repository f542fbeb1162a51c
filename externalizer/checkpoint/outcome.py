"""Turns criu's failure into an error that explains itself."""

from __future__ import annotations

from externalizer.criu.logs import Told
from externalizer.errors import CriuFailed, ExternalizerError, Refused, RestoreFailed
from externalizer.model.text import printable


def explained(
    what: str,
    status: int,
    told: Told,
    log: bytes,
    kind: type[CriuFailed] | type[RestoreFailed],
    *,
    safe: str,
) -> ExternalizerError:
    """The error for a criu that ended with `status`: our hook's reasons if it vetoed, else the log's lines.

    `safe` says what is still well, for example that the process runs on.
    """
    where = printable(log)
    if told.refusals:
        refused = Refused if kind is CriuFailed else RestoreFailed
        what = "; ".join(told.refusals)
        return refused(what, why=safe, hint=f"criu's log: {where}", transient=told.transient)
    ended = f"by signal {-status}" if status < 0 else f"with status {status}"
    known = [failure for failure in told.causes if failure.entry is not None]
    causes = "; ".join(failure.cause for failure in known)
    remedies = "; ".join(f"{failure.remedy}: `{failure.command}`" for failure in known)
    lines = "".join(f"\n    {line}" for line in told.lines)
    return kind(
        f"{what} ended {ended}" + (f": {causes}" if causes else ""),
        why=f"{safe}; the log's telling lines:{lines}" if lines else safe,
        hint=f"{remedies}. criu's log: {where}" if remedies else f"criu's log: {where}",
        transient=status > 0 and told.transient,
    )
