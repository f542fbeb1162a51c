"""A restored tree: which live descriptor a socket of the plan is now.

Pids of the outside change at a restore, those inside the tree's pid namespace and descriptor numbers don't.
"""

from __future__ import annotations

from types import TracebackType

from externalizer.errors import RestoreFailed
from externalizer.kernel.pidfd import Pins
from externalizer.model.finding import Holder
from externalizer.model.plan import SocketPlan
from externalizer.model.process import FdRef
from externalizer.model.snapshot import Snapshot
from externalizer.model.socket import UnixSocket
from externalizer.scan import native


class Restored:
    """The tree below `root`, as scanned now. Raises as `scan.native.scan`.

    Close it, or use it in a `with` statement.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._pins = Pins()
        self.snapshot: Snapshot
        self.refresh()

    def refresh(self) -> None:
        """Scan again: connections that were made since are seen."""
        self.snapshot = native.scan(self._root)
        self._by_vpid = {task.vpid: task for task in self.snapshot.leaders() if not task.gone}
        self._refs: dict[int, dict[int, FdRef]] = {}  # vpid -> its descriptors by number

    def pid(self, planned: SocketPlan) -> int:
        """The live pid of the first holder. Raises RestoreFailed."""
        return self.ref(planned).tid

    def ref(self, planned: SocketPlan) -> FdRef:
        """The live descriptor of the first holder. Raises RestoreFailed."""
        holder = planned.holders[0]
        found = self.held(holder)
        if found is not None:
            return found
        raise RestoreFailed(
            f"{holder.comm} (pid {holder.vpid} inside) has no descriptor {holder.fd} after the restore",
            why=f"it was unix socket {planned.ino} at the dump",
        )

    def held(self, holder: Holder) -> FdRef | None:
        """The live descriptor of a holder, None if it has none of that number."""
        if holder.vpid not in self._refs:
            task = self._by_vpid.get(holder.vpid)
            refs = () if task is None else self.snapshot.fds_of(task.tgid)
            self._refs[holder.vpid] = {ref.fd: ref for ref in refs}
        return self._refs[holder.vpid].get(holder.fd)

    def socket(self, planned: SocketPlan) -> UnixSocket:
        """The live socket, as unix_diag knows it. Raises RestoreFailed."""
        found = self.snapshot.socket(self.ref(planned).ino)
        if found is None:
            raise RestoreFailed(f"what was unix socket {planned.ino} at the dump is no unix socket now")
        return found

    def duplicate(self, planned: SocketPlan) -> int:
        """A duplicate of the descriptor, to be closed by the caller. Raises as `Pidfd`."""
        ref = self.ref(planned)
        return self.taken(ref)

    def taken(self, ref: FdRef) -> int:
        """A duplicate of a live descriptor, to be closed by the caller. Raises as `Pidfd`."""
        return self._pins.pin(ref.tid).getfd(ref.fd)

    def close(self) -> None:
        self._pins.close()

    def __enter__(self) -> Restored:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
