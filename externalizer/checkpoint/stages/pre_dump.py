"""pre-dump: the tree still runs and no memory is dumped yet: refuse here what can be refused.

The plan that was registered for this very process is compared by identity; without one (a static config of a
container runtime) the tree is planned for now. What the plan decides is decided again at post-dump from the
frozen tree; the compiled policy tells the plugin only what to refuse meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection

import msgspec

from externalizer.checkpoint import descriptors, identity, installation, keeping, registry, wanted, wishes
from externalizer.checkpoint.artifacts import PLAN_FILE
from externalizer.checkpoint.hook import criu_key, say
from externalizer.checkpoint.survey import survey
from externalizer.errors import Refused
from externalizer.kernel import procfs, safefs
from externalizer.model.plan import Plan
from externalizer.model.policy import ASKED, Policy
from externalizer.model.process import TaskKey
from externalizer.model.record import (
    HOLDING_FILE,
    INHERIT_FILE,
    POLICY_FILE,
    RESTORE_FILE,
    SEEN_FILE,
    pack_policy,
)
from externalizer.rules.external_namespaces import NO_LOCK


def run(pid: int, images: int) -> None:
    """Raise Refused where the dump must not start, else leave the policy in the image directory."""
    key = criu_key()
    criu = key.pid
    if _done(images, key):
        return
    _check_directory(images)
    _check_options(criu)
    target = TaskKey(pid, procfs.starttime(pid))
    identity.check(target, criu, os.environ)
    registered = registry.find(target)
    policy = wishes.policy_of(target, registered, criu)
    policy = _as_given(policy, identity.options_of(criu))
    stopped = wanted.FROZEN in os.environ
    plan = survey(pid, installation.paths(), policy, stopped=stopped)
    refuse(plan)
    if plan.target.own_mount_ns:
        _check_skipped(criu)
    if registered is None:
        say(f"no plan is registered for pid {pid}: planned now")
    else:
        _mounts_as_planned(registered, plan)
        _descriptors_as_planned(registered, plan)
        _locked_as_planned(registered, plan, criu)
    for name in (POLICY_FILE, SEEN_FILE, RESTORE_FILE, HOLDING_FILE, INHERIT_FILE, PLAN_FILE):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=images)
    keeping.prepare(plan, key, images)
    wishes.store(images, key, policy)
    safefs.write_file(images, POLICY_FILE, pack_policy([], key.pid, key.starttime))
    _warn_of_other_scripts(criu)


def _as_given(policy: Policy, given: Collection[str]) -> Policy:
    """The policy with what criu was given besides: the restore needs those options, too."""
    asked = (keyword for keyword in ASKED if f"--{keyword}" in given)
    return msgspec.structs.replace(
        policy,
        shell_job=policy.shell_job or "--shell-job" in given,
        options=tuple(dict.fromkeys((*policy.options, *asked))),
    )


def _done(images: int, criu: TaskKey) -> bool:
    """Whether this stage of this very criu is done already: see `checkpoint.once`."""
    try:
        wishes.stored(images, criu)
        os.stat(POLICY_FILE, dir_fd=images, follow_symlinks=False)
    except (Refused, FileNotFoundError):
        return False
    return True


def refuse(plan: Plan) -> None:
    """Raise Refused with every refusal of the plan, not only the first."""
    if not plan.refusals:
        return
    reasons = "; ".join(f"{one.subject}: {one.evidence} [{one.rule}]" for one in plan.refusals)
    raise Refused(
        f"{len(plan.refusals)} obstacles: {reasons}",
        hint=f"`externalize {plan.target.pid}` explains",
        transient=all(one.transient for one in plan.refusals),
    )


def _check_directory(images: int) -> None:
    """Images are trusted at restore: whoever can write them owns the restored program."""
    status = os.fstat(images)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise Refused(
            f"the image directory belongs to uid {status.st_uid} and has mode {status.st_mode & 0o7777:04o}",
            why="others could change the images, and with them what the restored program is",
            hint="use a directory of root's that nobody else can write: mkdir -m 0700",
        )


def _check_options(criu: int) -> None:
    if _is_given(criu, b"--lazy-pages", b"--la"):
        raise Refused(
            "criu dump was given --lazy-pages",
            why="criu then ignores a refusal after the dump and leaves the tree stopped",
            hint="dump without it",
        )


def _check_skipped(criu: int) -> None:
    if _is_given(criu, b"--skip-mnt", b"--skip-m"):
        raise Refused(
            "criu dump was given --skip-mnt",
            why="the mount would be missing after the restore, which is verified then",
            hint="dump without it, or umount it in the tree before",
        )


def _is_given(criu: int, option: bytes, shortest: bytes) -> bool:
    """getopt_long(3) takes every unambiguous beginning; no other option of criu's begins with `shortest`."""
    words = (word.partition(b"=")[0] for word in (*procfs.cmdline(criu), *identity.config_words(criu)))
    return any(word.startswith(shortest) and option.startswith(word) for word in words)


def _mounts_as_planned(registered: Plan, now: Plan) -> None:
    """criu's options were written from the registered plan: a mount that came since is in none of them."""
    planned = {mount.mountpoint for mount in registered.mounts}
    new = [mount.mountpoint for mount in now.mounts if mount.mountpoint not in planned]
    if new:
        raise Refused(
            f"mounts from outside appeared since the plan was made: {', '.join(new)}",
            why="dump.conf does not mark them",
            hint=f"run `externalize {now.target.pid}` again",
            transient=True,
        )


def _descriptors_as_planned(registered: Plan, now: Plan) -> None:
    new = descriptors.new_since(registered, now)
    if new:
        raise Refused(
            f"files of another mount namespace were opened since the plan was made: {', '.join(new)}",
            why="dump.conf does not mark them",
            hint=f"run `externalize {now.target.pid}` again",
            transient=True,
        )


def _locked_as_planned(registered: Plan, now: Plan, criu: int) -> None:
    """dump.conf of a tree without connections to keep leaves a shared net namespace unlocked."""
    unlocked = (NO_LOCK.keyword, NO_LOCK.value)
    if unlocked not in registered.dump_options or unlocked in now.dump_options:
        return
    if now.namespaces and not any(word.startswith(b"--network-lock") for word in procfs.cmdline(criu)):
        raise Refused(
            "criu was given --tcp-established, and dump.conf was written without",
            why="the net namespace would not be locked, and connections would be reset before the restore",
            hint=f"run `externalize {now.target.pid} --tcp-established`",
        )


def _warn_of_other_scripts(criu: int) -> None:
    """criu runs the action-script that was added last first: one on its command line runs before ours."""
    words = procfs.cmdline(criu)
    if any(word == b"--action-script" or word.startswith(b"--action-script=") for word in words):
        say(
            "warning: criu was given another --action-script on its command line; it runs BEFORE this hook "
            "and sees images without our edits. `externalize dump --action-script` runs it after"
        )
