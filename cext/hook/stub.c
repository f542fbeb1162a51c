// SPDX-License-Identifier: GPL-2.0-only
/*
 * externalize-hook: the action-script that criu calls at every stage.
 *
 * criu runs it nine times per dump and restore, mostly for stages that mean nothing to us and partly while
 * the tree is frozen; starting Python takes 20 ms and more. So this program ends the unused stages at once,
 * starts Python for the others, bounds it by a deadline (criu's own --timeout does not bound a script), and
 * then, if ours did not veto, runs the user's own scripts that `externalize dump` was given.
 *
 * criu passes no argument and three variables (criu, criu/action-scripts.c); standard input is closed,
 * output goes to criu's log. Exit status 0 = go on, anything else = veto.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef DEADLINE_MS
#define DEADLINE_MS 60000 /* of our own part at one stage; a test has less patience */
#endif
#define MAX_USER_SCRIPTS 16
#define HOOK_PROGRAM                                                           \
	"import sys; sys.path.insert(0, sys.argv.pop(1)); "                    \
	"from externalizer.checkpoint.hook import main; sys.exit(main(sys.argv[1:]))"

static const char *const used_stages[] = { "pre-dump", "post-dump", "pre-restore", "post-restore" };

/* The secret tells a command of ours that this line is of its own hook, and no name that criu logged. */
static void say(const char *what, const char *detail)
{
	const char *secret = getenv("EXTERNALIZER_SECRET");

	dprintf(STDERR_FILENO, "externalizer%s%s%s: hook: %s%s%s\n", secret ? "[" : "", secret ? secret : "",
		secret ? "]" : "", what, detail ? ": " : "", detail ? detail : "");
}

/* A descriptor below 3 that is closed would be taken by the first file that Python opens. */
static int fill_standard_fds(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR);
		if (fd < 0)
			return -errno;
	} while (fd < 3);
	close(fd);
	return 0;
}

/*
 * A holder of sockets waits to be told that nothing can abort the restore any more, and that the tree runs: our
 * post-restore has left a note under the pid of this criu. (At post-resume it has closed the image directory.)
 */
static int holder_waits(pid_t criu)
{
	char path[64];

	snprintf(path, sizeof(path), "/run/externalizer/kept/resume-%d", (int)criu);
	return !access(path, F_OK);
}

/* As /proc counts: getppid(2) says 0 once criu has entered a pid namespace that it was handed. */
static pid_t criu_in_proc(void)
{
	FILE *status = fopen("/proc/self/status", "re");
	char line[256];
	int ppid = 0;

	if (!status)
		return 0;
	while (!ppid && fgets(line, sizeof(line), status))
		sscanf(line, "PPid: %d", &ppid);
	fclose(status);
	return (pid_t)ppid;
}

static int stage_is_used(const char *stage, pid_t criu)
{
	if (!strcmp(stage, "pre-resume") || !strcmp(stage, "post-resume"))
		return holder_waits(criu);
	for (size_t i = 0; i < sizeof(used_stages) / sizeof(used_stages[0]); i++)
		if (!strcmp(stage, used_stages[i]))
			return 1;
	return 0;
}

/* The file beside this program that names the interpreter; only root's word counts. */
static int interpreter_from_file(const char *dir, char *out, size_t size)
{
	char path[PATH_MAX + 16];
	struct stat st;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/python", dir);
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = -1;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && !(st.st_mode & 022) &&
	    (st.st_uid == 0 || st.st_uid == geteuid()))
		n = read(fd, out, size - 1);
	close(fd);
	if (n <= 0)
		return -EPERM;
	out[n] = 0;
	out[strcspn(out, "\n")] = 0;
	return out[0] == '/' && !access(out, X_OK) ? 0 : -ENOENT;
}

/* …/lib/pythonX.Y/site-packages/externalizer/native/bin: the interpreter of that version above lib. */
static int interpreter_from_place(const char *dir, char *out, size_t size)
{
	const char *lib = strstr(dir, "/lib/python"), *next;
	int version_len;

	while (lib && (next = strstr(lib + 1, "/lib/python")))
		lib = next;
	if (!lib)
		return -ENOENT;
	lib += strlen("/lib/");
	version_len = (int)strcspn(lib, "/");
	snprintf(out, size, "%.*s/bin/%.*s", (int)(lib - strlen("/lib/") - dir), dir, version_len, lib);
	if (!access(out, X_OK))
		return 0;
	snprintf(out, size, "/usr/bin/%.*s", version_len, lib);
	return access(out, X_OK) ? -ENOENT : 0;
}

static int find_python(char *python, size_t size, char *package_parent, size_t parent_size)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n <= 0)
		return -errno;
	self[n] = 0;
	*strrchr(self, '/') = 0; /* …/externalizer/native/bin */
	snprintf(package_parent, parent_size, "%s", self);
	for (int up = 0; up < 3; up++) {
		char *slash = strrchr(package_parent, '/');

		if (!slash)
			return -ENOENT;
		*slash = 0;
	}
	if (!interpreter_from_file(self, python, size))
		return 0;
	return interpreter_from_place(self, python, size);
}

static void in_child(const char *path, char *const argv[], pid_t parent)
{
	/* When criu is killed this stub goes with it, and so does the child: nobody edits images alone. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	setpgid(0, 0);
	signal(SIGXFSZ, SIG_DFL); /* `externalize dump` has criu ignore it */
	execv(path, argv);
	say("can't run", path);
	_exit(127);
}

/* `deadline_ms` below 0: none. */
static int wait_bounded(pid_t pid, const char *what, int deadline_ms)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0); /* Linux 5.3 */
	struct pollfd pfd = { .fd = pidfd, .events = POLLIN };
	int status, ready;

	do
		ready = pidfd < 0 ? 1 : poll(&pfd, 1, deadline_ms);
	while (ready < 0 && errno == EINTR);
	if (ready == 0) {
		say("did not end in time, this is a veto", what);
		kill(-pid, SIGKILL);
		kill(pid, SIGKILL); /* before it made its group */
	}
	if (pidfd >= 0)
		close(pidfd);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 1;
	if (WIFSIGNALED(status)) {
		say("ended by a signal, this is a veto", what);
		return 1;
	}
	return WEXITSTATUS(status);
}

static int run(const char *path, char *const argv[], const char *what, int deadline_ms)
{
	pid_t self = getpid(), pid = fork();

	if (pid < 0) {
		say("can't fork", strerror(errno));
		return 1;
	}
	if (pid == 0)
		in_child(path, argv, self);
	return wait_bounded(pid, what, deadline_ms);
}

static int run_ours(const char *stage)
{
	char python[PATH_MAX], parent[PATH_MAX];
	char *argv[] = { python, "-I", "-c", HOOK_PROGRAM, parent, (char *)stage, NULL };

	if (find_python(python, sizeof(python), parent, sizeof(parent))) {
		say("can't find its Python interpreter, this is a veto; run `externalize version` once", NULL);
		return 1;
	}
	return run(python, argv, stage, DEADLINE_MS);
}

/*
 * In the order given, each with criu's variables; the first that fails is the veto, as it would be alone. It may
 * take as long as under criu, such as for copying the images to another host.
 */
static int run_users(const char *stage)
{
	for (int i = 1; i <= MAX_USER_SCRIPTS; i++) {
		char name[64], *argv[] = { NULL, NULL };
		int ret;

		snprintf(name, sizeof(name), "EXTERNALIZER_ACTION_SCRIPT_%d", i);
		argv[0] = getenv(name);
		if (!argv[0])
			return 0;
		ret = run(argv[0], argv, stage, -1);
		if (ret) {
			say("the action-script failed", argv[0]);
			return ret;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	char python[PATH_MAX], parent[PATH_MAX];
	const char *stage = getenv("CRTOOLS_SCRIPT_ACTION");
	pid_t criu = getppid();
	int ret = 0;

	if (argc == 2 && !strcmp(argv[1], "--interpreter")) {
		if (find_python(python, sizeof(python), parent, sizeof(parent)))
			return 1;
		puts(python);
		return 0;
	}
	if (fill_standard_fds())
		return 1;
	if (!stage) {
		say("criu's action-script: meant to be named in its config file, not to be run by hand", NULL);
		return 2;
	}
	/* A criu that died before the call above sends nothing: nobody edits images for nobody. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != criu)
		return 1;
	if (stage_is_used(stage, criu_in_proc()))
		ret = run_ours(stage);
	return ret ? ret : run_users(stage);
}
