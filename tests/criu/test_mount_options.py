"""Options of mounts that criu forgets are set again before the tree runs on."""

from __future__ import annotations

import mountmaker
import pytest
from contained import pid_of
from containers import Held, Launched
from mountmaker import USERNS, Host, Made, Step
from puppets import PATIENCE, Checkpoint, adopt_orphans, externalize

from externalizer.scan import mountinfo

pytestmark = pytest.mark.criu


def _options(pid: int) -> dict[bytes, bytes]:
    return {mount.mountpoint: mount.options for mount in mountinfo.of_process(pid)}


@pytest.mark.parametrize("userns", [0, USERNS])
def test_a_read_only_root_directory(
    userns: int, tmp_path_factory: pytest.TempPathFactory, criu_binary: str
) -> None:
    place = tmp_path_factory.mktemp("m")
    for path in (place, place.parent, place.parent.parent):
        path.chmod(0o755)
    adopt_orphans()
    checkpoint = Checkpoint(criu_binary, place)
    with Host(place) as host:
        root = f"{place}/root"
        steps: tuple[Step, ...] = (
            ("propagate", "rprivate", "/"), ("bind", root, root),
            ("mount", "proc", "proc", f"{root}/proc", ""),
            ("bind", f"{place}/private", f"{root}/m0"), ("ro", root), ("pivot", root),
            ("nested",), ("propagate", "rprivate", "/"), ("end",),
        )  # fmt: skip
        with Launched(Made(userns, "p", steps).argv(host.program)) as tree:
            before = [_options(pid) for pid in mountmaker.walk(tree.pid)]
            assert all(b"ro" in options[b"/"].split(b",") for options in before)
            dumped = externalize("dump", tree.pid, "-D", checkpoint.images)
            assert dumped.code == 0, (dumped.out, dumped.err)
            assert tree.init.has_ended(PATIENCE)
            tree.reap()
            restored = checkpoint.restore()
            assert restored.code == 0, (restored.err, checkpoint.log("restore.log")[-4000:])
            with Held(pid_of(restored.out)) as held:
                assert [_options(pid) for pid in mountmaker.walk(held.pid)] == before
