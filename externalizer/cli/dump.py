"""externalize dump PID -D IMAGES: plan and criu dump in one."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from externalizer.checkpoint import attempts
from externalizer.checkpoint import dump as checkpoint
from externalizer.cli import common, policies
from externalizer.criu.provide.find import Criu
from externalizer.errors import ExitCode, NoAccess, Unsupported
from externalizer.launch import entering
from externalizer.model import plan as model
from externalizer.model.text import printable, shell_word
from externalizer.scan import native

HELP = "checkpoint a process tree with criu, with all that reaches outside it taken care of"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pid", type=common.pid_argument, metavar="PID", help="root of the process tree")
    parser.add_argument(
        "-R", "--leave-running", action="store_true", help="let the tree run on after the dump"
    )
    parser.add_argument(
        "--retries", type=_retries, default=attempts.RETRIES, metavar="N",
        help="how often a dump is attempted again that was refused for a reason that can pass by itself; "
        f"default: {attempts.RETRIES}",
    )  # fmt: skip
    parser.add_argument(
        "--freeze", action="store_true",
        help="freeze the tree's cgroup, which must hold nothing else, for the time of the dump",
    )  # fmt: skip
    common.add_checkpoint(parser)
    policies.add(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0: dumped. The tree has ended, unless --leave-running."""
    options = checkpoint.Options(
        leave_running=args.leave_running,
        scripts=tuple(args.action_script),
        passed_on=tuple(args.passed_on),
        policy=policies.chosen(args),
        retries=args.retries,
        freeze=args.freeze,
    )
    images = common.check_directory_name(args.images_dir)
    if not any(name.startswith("pid") for name in options.policy.namespaces) and entering.needed(args.pid):
        return _elsewhere(args, images, options)
    return _dump(args, images, options)


def _elsewhere(args: argparse.Namespace, images: bytes, options: checkpoint.Options) -> int:
    """The dump of a tree in another pid namespace, whose init is not in the tree."""
    outside = native.check_target(args.pid)
    images = os.path.abspath(images)
    options = dataclasses.replace(options, entered=True)

    def there(pid: int) -> int:
        common.note(f"process {args.pid} is dumped from within its own pid namespace, as pid {pid}")
        return _dump(argparse.Namespace(**{**vars(args), "pid": pid}), images, options)

    try:
        return entering.run_there(args.pid, images, there, common.reported)
    except entering.Killed as killed:
        _tell(args, images, checkpoint.finished_although_killed(outside, images, killed.number))
        common.note("the tree's pid namespace has ended with it")
        return ExitCode.OK


def _dump(args: argparse.Namespace, images: bytes, options: checkpoint.Options) -> int:
    try:
        plan = checkpoint.dump(args.pid, images, _criu(args), options, progress=common.note)
    except checkpoint.PlanRefused as refused:
        if args.json:
            sys.stdout.write(model.to_json(refused.plan).decode())
        else:
            _show(refused.plan)
        after = f" after {refused.attempts} attempts" if refused.attempts > 1 else ""
        common.note(f"refused{after}; the process runs on untouched")
        return ExitCode.REFUSED
    _tell(args, images, plan)
    return ExitCode.OK


def _tell(args: argparse.Namespace, images: bytes, plan: model.Plan) -> None:
    if args.json:
        sys.stdout.write(model.to_json(plan).decode())
    else:
        _show(plan)
        print(f"dumped into {printable(images)}; restore with: externalize restore -D {shell_word(images)}")


def _retries(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 4:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from 0 to 999")


def _criu(args: argparse.Namespace) -> Criu:
    try:
        return common.find_criu(args.criu)
    except (NoAccess, Unsupported):
        native.scan(args.pid)  # says more where the target or our rights to it are in the way
        raise


def _show(plan: model.Plan) -> None:
    from externalizer.render import plan as render
    from externalizer.render.terminal import console

    render.show(plan, console())
