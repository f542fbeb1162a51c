"""What the user wants for external sockets, as it is stored in a plan."""

from __future__ import annotations

import enum

import msgspec

KEEP_SECONDS = 3600  # default time to live of kept sockets
WAIT_MAX = 86400  # seconds that a restore may be told to wait for a listener
# Options of criu's that change what the program or others notice: never decided for the user. For both files.
ASKED = (
    "tcp-established", "tcp-close", "skip-in-flight", "file-locks", "force-irmap", "allow-uprobes",
)  # fmt: skip


class Want(str, enum.Enum):
    """What a rule of the policy asks for a socket."""

    KEEP = "keep"
    RECONNECT = "reconnect"
    HANGUP = "hangup"
    REFUSE = "refuse"


class PolicyRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """`pattern` in the printable form of model.text, else as the user wrote it and plan.policy parses it.

    `origin` says where it was written, for people.
    """

    pattern: str
    want: Want
    origin: str
    on_missing: str = ""  # "" = the policy's


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last rule that matches a socket decides; without one the defaults of docs/rules.md do.

    `on_missing`: what a restore does where a listener, or the holder of a kept socket, is gone: "fail",
    "hangup", or the number of seconds to wait for it. `keep_seconds` is the time to live of kept sockets.
    `descriptors`: what is handed over at the restore, a target for a descriptor's number or an external's
    name (model.descriptor), printable. `shell_job`: the tree is of a session whose leader is outside, and
    criu is told so. `options`: those of `ASKED` that criu is given because the user wants it.
    `namespaces`: what is handed over for a namespace, a path or private (model.namespace), printable.
    """

    rules: tuple[PolicyRule, ...] = ()
    strict: bool = False
    on_missing: str = "fail"
    keep_seconds: int = KEEP_SECONDS
    descriptors: dict[str, str] = {}
    shell_job: bool = False
    options: tuple[str, ...] = ()
    namespaces: dict[str, str] = {}


DEFAULTS = Policy()


def check_on_missing(text: str) -> str:
    """Return `text` if it is a value of `on_missing`. Raises ValueError with a sentence."""
    if text in ("fail", "hangup"):
        return text
    if text.isascii() and text.isdigit() and 0 < len(text) < 9 and 0 < int(text) <= WAIT_MAX:
        return str(int(text))
    raise ValueError(f"neither fail nor hangup nor a number of seconds from 1 to {WAIT_MAX}")
