"""Our own effective capabilities: capabilities(7)."""

from __future__ import annotations

# <linux/capability.h>; the numbers are the ABI
NUMBERS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_ADMIN": 12,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
    "CAP_CHECKPOINT_RESTORE": 40,
}


def effective() -> frozenset[str]:
    """Our own, of the calling thread."""
    mask = 0
    with open("/proc/thread-self/status", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("CapEff:"):
                mask = int(line.split()[1], 16)
    return frozenset(name for name, number in NUMBERS.items() if mask >> number & 1)
