"""externalize PID: scan, explain, write the option files."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence

from externalizer.checkpoint import installation, registry, survey
from externalizer.cli import common, onefile, policies
from externalizer.criu import config, shim
from externalizer.criu.provide.find import Criu
from externalizer.errors import ExitCode, ExternalizerError, NoAccess, Unsupported
from externalizer.kernel import safefs
from externalizer.model import plan as model
from externalizer.model.process import TaskKey
from externalizer.model.runtime import Container
from externalizer.model.text import printable, shell_word
from externalizer.plan.onefile import left_to

HELP = "find what reaches outside a process tree and write criu option files for it (the default command)"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pid", type=common.pid_argument, metavar="PID", help="root of the process tree")
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="directory for the files; default: ./externalize-PID"
    )
    parser.add_argument("--dry-run", action="store_true", help="explain only, write nothing")
    onefile.add(parser)
    parser.add_argument(
        "-j",
        "--shell-job",
        action="store_true",
        help="the tree is of a shell's session; for both option files",
    )
    policies.add(parser)
    common.add_json(parser)
    common.add_criu(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0: a plan was made and its files written; 7: refused, nothing written."""
    onefile.check(args)
    criu, warning = _criu(args.criu)
    plan = survey.survey(args.pid, installation.paths(criu), policies.chosen(args))
    write = not args.dry_run and not plan.refusals
    if args.one_file:
        container = onefile.container_of(args, plan)
        plan = plan if container is None else left_to(plan, container)
        place, commands = _one(args, plan, criu, write, container)
    else:
        place, commands = _several(args, plan, criu, write)
    if warning:
        common.note(warning)
    _report(args, plan, place, commands if write else ())
    return ExitCode.REFUSED if plan.refusals else ExitCode.OK


def _one(
    args: argparse.Namespace, plan: model.Plan, criu: Criu | None, write: bool, container: Container | None
) -> tuple[bytes, list[str]]:
    """Write the one file; its path, and what to run then."""
    path = common.check_directory_name(args.one_file)
    text = b"" if plan.refusals else onefile.render(plan, container)
    if write:
        with _registered(plan):
            onefile.write(path, text, _sudo_user())
        if told := onefile.warning(path, container):
            common.note(told)
    return path, onefile.next_commands(
        _variables(plan, criu), _program(criu), plan.target.pid, path, container
    )


def _several(
    args: argparse.Namespace, plan: model.Plan, criu: Criu | None, write: bool
) -> tuple[bytes, list[str]]:
    """Write the directory; its path, and what to run then."""
    output = f"./externalize-{args.pid}/" if args.output is None else args.output
    directory = common.check_directory_name(output)
    # Rendered before anything is written: a value that criu's parser can't take refuses the whole.
    files = {} if plan.refusals else _files(plan)
    if write:
        with _registered(plan):
            safefs.replace_directory(directory, files, marker=_marker(), trusted_uids=_sudo_user())
    again = [shell_word(os.fsencode(word)) for word in policies.words(args)]
    return directory, _next(plan, directory, criu, again)


def _criu(explicit: str | None) -> tuple[Criu | None, str]:
    """The criu, or a warning: the plan is right without it, the dump will need one."""
    try:
        return common.find_criu(explicit), ""
    except (NoAccess, Unsupported) as error:
        return None, f"warning: {error}"


@contextlib.contextmanager
def _registered(plan: model.Plan) -> Iterator[None]:
    """Register the plan while its files are written: both or neither."""
    registry.register(plan)
    try:
        yield
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


def _report(args: argparse.Namespace, plan: model.Plan, place: bytes, commands: Sequence[str]) -> None:
    """`commands` are empty where nothing was written."""
    if args.json:
        sys.stdout.write(model.to_json(plan).decode())
        return
    # rich costs more start-up than the scan itself; --json users don't pay it.
    from externalizer.render import plan as render
    from externalizer.render.terminal import console

    out = console()
    if commands:
        out.print(printable(place), soft_wrap=True)
    render.show(plan, out, next_commands=commands)
    if plan.refusals:
        common.note(f"{len(plan.refusals)} refused, nothing was written; the process runs on untouched")


def _program(criu: Criu | None) -> str:
    return shell_word(os.fsencode(criu.named if criu else "criu"))


def _variables(plan: model.Plan, criu: Criu | None) -> str:
    """Shell words that set what criu needs in its environment for this tree, a blank after each."""
    # criu asks for the limits of each task, which needs CAP_SYS_RESOURCE for those of other users.
    if criu is None or not set(plan.target.uids) - {os.geteuid()}:
        return ""
    extra = shim.preload_environment(criu.path)
    return "".join(f"{name}={shlex.quote(value)} " for name, value in extra.items())


def _next(plan: model.Plan, directory: bytes, criu: Criu | None, policy: list[str]) -> list[str]:
    program = _variables(plan, criu) + _program(criu)
    dump, restore = (
        shell_word(os.path.join(directory, name.encode())) for name in (config.DUMP, config.RESTORE)
    )
    commands = [
        f"{program} dump -t {plan.target.pid} -D IMAGES --config {dump}",
        f"{program} restore -D IMAGES --config {restore}",
    ]
    wrapped = " ".join(["externalize dump", str(plan.target.pid), "-D IMAGES", *policy])
    return [*commands, f"or: {wrapped}; externalize restore -D IMAGES"]
