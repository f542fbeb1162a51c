"""The Python half of externalize-hook: one call per stage, started by the native stub.

criu gives three variables and no argument. What is printed goes to criu's log, one marked line a message.
An exit status that is not 0 is a veto: at pre-dump and post-dump the tree runs on unharmed, at post-restore
criu ends the half-restored tree. The set of modules that this imports is fixed by a test: at post-dump and
post-restore the tree is stopped while Python starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from externalizer.checkpoint import wanted
from externalizer.errors import ExitCode, ExternalizerError
from externalizer.kernel import procfs
from externalizer.model.process import TaskKey

MARK = "externalizer"


def say(message: str) -> None:
    """Print one line to criu's log, marked so that the command that started criu knows it for ours."""
    secret = os.environ.get(wanted.SECRET)
    mark = f"{MARK}[{secret}]: " if secret else f"{MARK}: "
    print(mark + message, file=sys.stderr, flush=True)


_for: TaskKey | None = None  # whose stages are done here, if not by a hook that it runs


def criu_key() -> TaskKey:
    """The criu that runs this hook, the parent of the native stub that started us. Raises TargetGone.

    By /proc: where criu has entered another pid namespace, getppid(2) counts in that one.
    """
    if _for is not None:
        return _for
    stub = procfs.stat(int(os.readlink("/proc/self"))).ppid
    pid = procfs.stat(stub).ppid
    return TaskKey(pid, procfs.starttime(pid))


def stage_for(criu: TaskKey, name: str, pid: str) -> int:
    """Do a stage in a delegate of this very criu; `pid` is of the tree's root. The hook's exit status."""
    global _for
    _for = criu
    os.environ["CRTOOLS_INIT_PID"] = pid
    return main([name])


def _stage(name: str) -> Callable[[int, int], None]:
    # Imported per stage: a restore must not pay for the scanner, nor a dump for the verifier.
    if name == "pre-dump":
        from externalizer.checkpoint.stages import pre_dump

        return pre_dump.run
    if name == "post-dump":
        from externalizer.checkpoint.stages import post_dump

        return post_dump.run
    if name == "pre-restore":
        from externalizer.checkpoint.stages import pre_restore

        return pre_restore.run
    if name == "post-restore":
        from externalizer.checkpoint.stages import post_restore

        return post_restore.run
    if name == "pre-resume":
        from externalizer.checkpoint.stages import pre_resume

        return pre_resume.run
    if name == "post-resume":
        from externalizer.checkpoint.stages import post_resume

        return post_resume.run
    raise ExternalizerError(f"the hook was started for the unknown stage {name!r}")


def _run(name: str) -> None:
    pid = os.environ.get("CRTOOLS_INIT_PID", "")
    directory = os.environ.get("CRTOOLS_IMAGE_DIR", "")
    if name == "pre-restore":
        pid = pid or "0"  # there is none yet
    if not pid.isdigit() or not directory:
        raise ExternalizerError(
            f"criu called the {name} hook without CRTOOLS_INIT_PID and CRTOOLS_IMAGE_DIR",
            hint="use criu 4.1 or newer",
        )
    if name in ("pre-resume", "post-resume"):
        _stage(name)(int(pid), -1)  # nothing can be refused any more; later criu has closed the directory
        return
    images = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        wanted.check(os.environ)
        _stage(name)(int(pid), images)
        wanted.check(os.environ)
    finally:
        os.close(images)


def main(arguments: Sequence[str]) -> int:
    """Run the stage named by the only argument; return the exit status."""
    try:
        if not procfs.is_own():
            from externalizer.checkpoint import delegate

            return delegate.ask(criu_key(), arguments[0], os.environ.get("CRTOOLS_INIT_PID", ""))
        _run(arguments[0])
    except ExternalizerError as error:
        say(f"{'refused for now' if error.transient else 'refused'}: {error}")
        return error.exit_code or ExitCode.BUG
    except Exception as error:  # a bug of ours must be a veto with a message, never a half-edited image
        say(f"bug in the hook: {type(error).__name__}: {error}")
        import traceback

        for line in traceback.format_exc().splitlines():
            say(line)
        return ExitCode.BUG
    return ExitCode.OK
