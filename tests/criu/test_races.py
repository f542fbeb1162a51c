import collections
import shutil
import time

from churning import Churn, Server
from puppets import Checkpoint, adopt_orphans, externalize
from support import compile_program


def test_exp(criu_binary, place, build_directory):
    adopt_orphans()
    program = compile_program("churn.c", build_directory / "churn", "-pthread")
    server = Server(place / "server.sock")
    churn = Churn(program, place, place / "server.sock", 24)
    counts = collections.Counter()
    reasons = []
    for i in range(60):
        d = place / f"try{i}"
        d.mkdir()
        cp = Checkpoint(criu_binary, d)
        t = time.monotonic()
        planned = externalize(churn.pid, "-o", d / "plan")
        t1 = time.monotonic()
        if planned.code:
            counts["plan"] += 1
            reasons.append(("plan", planned.code, planned.out[-2000:], planned.err))
            churn.unharmed()
            continue
        cp.images.mkdir(mode=0o700)
        dumped = cp._criu("dump", "-t", str(churn.pid), "-o", "dump.log", "--config", d / "plan/dump.conf")
        t2 = time.monotonic()
        if dumped.code:
            counts["dump"] += 1
            reasons.append(
                ("dump", dumped.code, [l for l in dumped.err.splitlines() if "refused" in l or "Error" in l])
            )
            churn.unharmed()
            continue
        churn.reap()
        before = churn.threads()
        r = cp.plain_restore()
        t3 = time.monotonic()
        assert r.code == 0, r.err[-5000:]
        churn.goes_on()
        assert not server.wrong, server.wrong
        counts["ok"] += 1
        print(
            i,
            round(t1 - t, 2),
            round(t2 - t1, 2),
            round(t3 - t2, 2),
            [l for l in dumped.err.splitlines() if "external sockets" in l],
            sum(t.done for t in churn.threads()),
            sum(t.hung_up for t in churn.threads()),
        )
        shutil.rmtree(d)
    print(counts)
    for r in reasons:
        print(r)
    churn.end()
    server.close()
