"""externalize restore -D IMAGES: criu restore with the options of the stored plan."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys

from externalizer.checkpoint import adapted, mountmaps, pairs
from externalizer.checkpoint import restore as checkpoint
from externalizer.cli import common, pidns, policies
from externalizer.errors import ExitCode, UsageError
from externalizer.model.text import printable, shell_word, socket_name, to_bytes
from externalizer.settings import mapfile

HELP = "restore a process tree that was dumped with externalizer's plan, and verify its sockets"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", "--restore-detached", action="store_true",
        help="return as soon as the tree runs; default: wait until its root has ended",
    )  # fmt: skip
    parser.add_argument("--pidfile", metavar="FILE", help="write the root's pid here")
    parser.add_argument(
        "--pidns", action="store_true",
        help="in a new pid namespace, with /proc and mounts of its own: there no pid is taken",
    )  # fmt: skip
    parser.add_argument(
        "--root", metavar="DIR", help="root file system of the tree; default: where it was at the dump"
    )
    parser.add_argument(
        "--map-socket",
        action="append",
        default=[],
        type=_socket_map,
        metavar="OLD=NEW",
        help="connect to NEW what was connected to OLD (a path, or @ and an abstract name); may be repeated",
    )
    parser.add_argument(
        "--map-mount",
        action="append",
        default=[],
        type=_mount_map,
        metavar="MOUNTPOINT=PATH",
        help="bind PATH of this host where the tree had an external mount; may be repeated",
    )
    parser.add_argument(
        "--map-fd",
        action="append",
        default=[],
        type=policies.descriptor,
        metavar="N=TARGET",
        help="hand over stdin, stdout, stderr (this command's), null or a PATH as descriptor N, or for what "
        "the plan calls N; may be repeated",
    )
    parser.add_argument(
        "--map-ns", action="append", default=[], type=policies.namespace, metavar="KIND=PATH",
        help="hand over another net or pid namespace, as /run/netns/NAME or /proc/PID/ns/KIND; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--write-conf", metavar="FILE",
        help="start nothing; write the option file with which others restore these images on this host",
    )  # fmt: skip
    parser.add_argument(
        "--map", metavar="FILE", help="a file (TOML) with tables [mounts] and [sockets] of such pairs"
    )
    parser.add_argument(
        "--on-missing", type=policies.on_missing, metavar="fail|hangup|SECONDS",
        help="where a listener or a holder is gone, whatever the plan says: fail, hang up, or wait",
    )  # fmt: skip
    common.add_checkpoint(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 0: the tree was restored and verified (and, without -d, has ended since); 130: ^C while it ran."""
    options = checkpoint.Options(
        root=args.root,
        shell_job=args.shell_job,
        tcp_established=args.tcp_established,
        scripts=tuple(args.action_script),
        passed_on=tuple(args.passed_on),
        wishes=_wishes(args),
    )
    images = common.check_directory_name(args.images_dir)
    if args.write_conf is not None:
        return _write_conf(args, images, options)
    common.check_pidfile(args.pidfile)
    criu = common.find_criu(args.criu)

    def restored() -> checkpoint.Running:
        return checkpoint.restore(images, criu, options, progress=common.note)

    def tell(tree: checkpoint.Running) -> None:
        # What the tree writes there is not mixed with words of ours.
        out = sys.stderr if tree.has_stdout else sys.stdout
        told = json.dumps({"pid": tree.pid}) if args.json else f"restored, the tree's root is pid {tree.pid}"
        print(told, flush=True, file=out)

    if args.pidns:
        return pidns.restore(args, images, restored, tell)
    tree = restored()
    common.write_pidfile(args.pidfile, tree.pid)
    tell(tree)
    return ExitCode.OK if args.restore_detached else _wait(tree.pid)


def _write_conf(args: argparse.Namespace, images: bytes, options: checkpoint.Options) -> int:
    """Raises UsageError for options that are for a criu that we start."""
    for given, option in (
        (args.restore_detached, "-d"), (args.pidfile, "--pidfile"), (args.shell_job, "--shell-job"),
        (args.tcp_established, "--tcp-established"), (args.action_script, "--action-script"),
        (args.passed_on, "--"), (args.pidns, "--pidns"),
    ):  # fmt: skip
        if given:
            raise UsageError(f"{option} has no effect with --write-conf", hint="give it to that criu")
    file = os.fsencode(args.write_conf)
    if not file or os.path.isdir(file):
        raise UsageError(f"{printable(file)!r} is not the name of a file")
    criu = common.find_criu(args.criu)
    checkpoint.write_conf(images, criu, options, file, progress=common.note)
    if args.json:
        print(json.dumps({"conf": os.path.abspath(args.write_conf)}))
    else:
        words = ["restore", "-d", "-D", shell_word(images), "--config", shell_word(file)]
        print(f"{shell_word(os.fsencode(criu.named))} {' '.join(words)}")
    return ExitCode.OK


def _wishes(args: argparse.Namespace) -> adapted.Wishes:
    """The command line counts more than the file. Raises UsageError for what contradicts itself."""
    pairs.check("--map-socket", args.map_socket, socket_name)
    pairs.check("--map-mount", args.map_mount, printable)
    pairs.check("--map-fd", args.map_fd, str)
    pairs.check("--map-ns", args.map_ns, str)
    file = mapfile.MapFile() if args.map is None else mapfile.read(args.map)
    try:
        sockets = [adapted.named_map(*pair) for pair in file.sockets]
        mounts = [mountmaps.checked(*map(to_bytes, pair)) for pair in file.mounts]
    except ValueError as error:
        raise UsageError(f"map file {printable(os.fsencode(args.map))}: {error}") from error
    return adapted.Wishes(
        maps=tuple({**dict(sockets), **dict(args.map_socket)}.items()),
        on_missing=args.on_missing or "",
        mounts=tuple({**dict(mounts), **dict(args.map_mount)}.items()),
        descriptors=tuple(args.map_fd),
        namespaces=tuple(args.map_ns),
    )


def _mount_map(text: str) -> mountmaps.Pair:
    try:
        return mountmaps.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _socket_map(text: str) -> tuple[bytes, bytes]:
    try:
        return adapted.parse_map(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _wait(pid: int) -> int:
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = checkpoint.wait(pid)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f"externalize: no longer waiting; pid {pid} runs on", file=sys.stderr)
        return ExitCode.INTERRUPTED
    common.note(f"pid {pid} has ended with status {status}")
    return ExitCode.OK
