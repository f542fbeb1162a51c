"""externalize PID: scan, explain, write the option files."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from externalizer.checkpoint import installation, registry, survey
from externalizer.cli import common, policies
from externalizer.criu import config, shim
from externalizer.criu.provide.find import Criu
from externalizer.errors import ExitCode, ExternalizerError, NoAccess, Unsupported
from externalizer.kernel import safefs
from externalizer.model import plan as model
from externalizer.model.process import TaskKey
from externalizer.model.text import printable, shell_word

HELP = "find what reaches outside a process tree and write criu option files for it (the default command)"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pid", type=common.pid_argument, metavar="PID", help="root of the process tree")
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="directory for the files; default: ./externalize-PID"
    )
    parser.add_argument("--dry-run", action="store_true", help="explain only, write nothing")
    policies.add(parser)
    common.add_json(parser)
    common.add_criu(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0: a plan was made and its files written; 7: refused, nothing written."""
    criu, warning = _criu(args.criu)
    plan = survey.survey(args.pid, installation.paths(criu), policies.chosen(args))
    output = f"./externalize-{args.pid}/" if args.output is None else args.output
    directory = common.check_directory_name(output)
    # Rendered before anything is written: a value that criu's parser can't take refuses the whole.
    files = {} if plan.refusals else _files(plan)
    write = not args.dry_run and not plan.refusals
    if write:
        _write(plan, directory, files)
    if warning:
        common.note(warning)
    _report(args, plan, directory, criu, written=write)
    return ExitCode.REFUSED if plan.refusals else ExitCode.OK


def _criu(explicit: str | None) -> tuple[Criu | None, str]:
    """The criu, or a warning: the plan is right without it, the dump will need one."""
    try:
        return common.find_criu(explicit), ""
    except (NoAccess, Unsupported) as error:
        return None, f"warning: {error}"


def _write(plan: model.Plan, directory: bytes, files: dict[str, bytes]) -> None:
    """Register the plan and write its files: both or neither."""
    registry.register(plan)
    try:
        safefs.replace_directory(directory, files, marker=_marker(), trusted_uids=_sudo_user())
    except ExternalizerError:
        registry.forget(TaskKey(plan.target.pid, plan.target.starttime))
        raise


def _files(plan: model.Plan) -> dict[str, bytes]:
    return {
        config.DUMP: config.dump_conf(plan),
        config.RESTORE: config.restore_conf(plan),
        config.PLAN: model.to_json(plan),
    }


def _sudo_user() -> frozenset[int]:
    """Who called us through sudo(8): may own the directory that they stand in, for they can be root."""
    uid = os.environ.get("SUDO_UID", "")
    return frozenset({int(uid)} if uid.isascii() and uid.isdigit() else ())


def _marker() -> safefs.Marker:
    def accepts(raw: bytes) -> bool:
        try:
            model.from_json(raw)
        except model.PlanDamaged:
            return b'"schema": "externalizer.plan/' in raw[:200]
        return True

    return safefs.Marker(config.PLAN, accepts)


def _report(
    args: argparse.Namespace, plan: model.Plan, directory: bytes, criu: Criu | None, *, written: bool
) -> None:
    if args.json:
        sys.stdout.write(model.to_json(plan).decode())
        return
    # rich costs more start-up than the scan itself; --json users don't pay it.
    from externalizer.render import plan as render
    from externalizer.render.terminal import console

    out = console()
    if written:
        out.print(printable(directory), soft_wrap=True)
    again = [shell_word(os.fsencode(word)) for word in policies.words(args)]
    render.show(plan, out, next_commands=_next(plan, directory, criu, again) if written else ())
    if plan.refusals:
        common.note(f"{len(plan.refusals)} refused, nothing was written; the process runs on untouched")


def _next(plan: model.Plan, directory: bytes, criu: Criu | None, policy: list[str]) -> list[str]:
    program = shell_word(os.fsencode(criu.named if criu else "criu"))
    # criu asks for the limits of each task, which needs CAP_SYS_RESOURCE for those of other users.
    if criu and set(plan.target.uids) - {os.geteuid()}:
        extra = shim.preload_environment(criu.path)
        program = "".join(f"{name}={shlex.quote(value)} " for name, value in extra.items()) + program
    dump, restore = (
        shell_word(os.path.join(directory, name.encode())) for name in (config.DUMP, config.RESTORE)
    )
    commands = [
        f"{program} dump -t {plan.target.pid} -D IMAGES --config {dump}",
        f"{program} restore -D IMAGES --config {restore}",
    ]
    wrapped = " ".join(["externalize dump", str(plan.target.pid), "-D IMAGES", *policy])
    return [*commands, f"or: {wrapped}; externalize restore -D IMAGES"]
