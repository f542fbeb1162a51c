// SPDX-License-Identifier: GPL-2.0-only
/*
 * Starts a command as the init of a small container: own pid and mount namespace, root directory by
 * pivot_root(2), new /proc, tmpfs on /tmp and /dev, a session of its own, no descriptor but /dev/null.
 *
 * contain [--slave] [--userns BASE[:COUNT]] [--also LETTERS] [--ro SOURCE TARGET | --rw SOURCE TARGET]... ROOT UID COMMAND [ARGUMENT]...
 *
 * The targets must exist below ROOT. With --userns also in a user namespace of its own, where ids from 0 to
 * 65535 (COUNT - 1) are those from BASE on outside, and UID is one of them; COUNT 1 is what a user without any
 * right may map, their own. LETTERS are further namespaces: c (cgroup),
 * i (ipc), n (net), u (uts). Once the command runs, its pid goes to stdout, which is closed. Ends
 * with the command, and ends it when its own parent dies.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t init_pid;
static unsigned int userns_base; /* 0 = no user namespace */
static unsigned int userns_count = 65536;
static unsigned long further; /* CLONE_NEW* */

static void fail(const char *what, const char *which)
{
	dprintf(STDERR_FILENO, "contain: %s %s: %s\n", what, which, strerror(errno));
	_exit(125);
}

static void end_init(int sig)
{
	(void)sig;
	kill(init_pid, SIGKILL);
}

static const char *below(const char *root, const char *path)
{
	static char joined[PATH_MAX];

	if (snprintf(joined, sizeof(joined), "%s%s", root, path) >= (int)sizeof(joined)) {
		errno = ENAMETOOLONG;
		fail("path", path);
	}
	return joined;
}

/* In a user namespace a remount must not take away what the mount has: mount_namespaces(7). */
static unsigned long flags_of(const char *path)
{
	struct statvfs status;

	if (statvfs(path, &status))
		fail("statvfs", path);
	return status.f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_RELATIME);
}

static void bind(const char *root, const char *source, const char *target, int read_only)
{
	const char *at = below(root, target);

	/* What is mounted below can't be uncovered in a user namespace, so it comes along. */
	if (mount(source, at, NULL, MS_BIND | (userns_base ? MS_REC : 0), NULL))
		fail("bind", source);
	if (read_only && mount(NULL, at, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags_of(at), NULL))
		fail("remount", source);
}

static void make_dev(const char *root)
{
	static const struct {
		const char *path;
		unsigned int minor;
	} nodes[] = { { "/dev/null", 3 }, { "/dev/zero", 5 }, { "/dev/random", 8 }, { "/dev/urandom", 9 } };

	if (mount("dev", below(root, "/dev"), "tmpfs", MS_NOSUID, "mode=755"))
		fail("mount", "/dev");
	for (size_t i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++) {
		const char *at = below(root, nodes[i].path);

		if (!userns_base && mknod(at, S_IFCHR | 0666, makedev(1, nodes[i].minor)))
			fail("mknod", nodes[i].path);
		if (userns_base) {
			close(open(at, O_CREAT | O_WRONLY, 0666));
			bind(root, nodes[i].path, nodes[i].path, 0);
		}
	}
}

static void enter_root(const char *root)
{
	if (mount("tmp", below(root, "/tmp"), "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"))
		fail("mount", "/tmp");
	if (mount("proc", below(root, "/proc"), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		fail("mount", "/proc");
	make_dev(root);
	/* pivot_root(2): the old root ends up stacked on the new one and is taken away. */
	if (chdir(root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		fail("pivot_root", root);
}

static void become(unsigned int uid)
{
	int null = open("/dev/null", O_RDWR);

	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
		fail("open", "/dev/null");
	if (null > 2)
		close(null);
	/* Who maps only themselves has been denied setgroups(2): user_namespaces(7). */
	if (setsid() < 0 || (userns_count > 1 && setgroups(0, NULL)) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
		_exit(125);
}

/* The other side of enter_userns: waits for the mapping, then is root by it. */
static void await_mapping(int mapped)
{
	char byte;

	if (read(mapped, &byte, 1) != 1 || setresgid(0, 0, 0) || setresuid(0, 0, 0))
		fail("become root in", "user namespace");
	close(mapped);
}

static void write_map(const char *name)
{
	char path[64], line[64];
	int fd, len = snprintf(line, sizeof(line), "0 %u %u\n", userns_base, userns_count);

	if (userns_count == 1) {
		snprintf(path, sizeof(path), "/proc/%d/setgroups", init_pid);
		fd = open(path, O_WRONLY);
		if (fd < 0 || write(fd, "deny", 4) != 4)
			fail("write", path);
		close(fd);
	}
	snprintf(path, sizeof(path), "/proc/%d/%s", init_pid, name);
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, line, (size_t)len) != len)
		fail("write", path);
	close(fd);
}

static void run_init(char **argv, const char *root, unsigned int uid, unsigned long propagation, int status)
{
	if (mount(NULL, "/", NULL, MS_REC | propagation, NULL))
		fail("propagation", "/");
	if (mount(root, root, NULL, MS_BIND, NULL))
		fail("bind", root);
	for (; argv[0][0] == '-'; argv += 3)
		bind(root, argv[1], argv[2], !strcmp(argv[0], "--ro"));
	enter_root(root);
	/* Only the status pipe is kept, and it is closed by a successful exec. */
	if (dup3(status, 9, O_CLOEXEC) < 0)
		fail("dup3", "status");
	become(uid);
	for (int fd = 3; fd < 256; fd++) {
		if (fd != 9)
			close(fd);
	}
	execvp(argv[2], argv + 2);
	dprintf(9, "contain: exec %s: %s\n", argv[2], strerror(errno));
	_exit(125);
}

int main(int argc, char **argv)
{
	unsigned long propagation = MS_PRIVATE;
	char **rest = argv + 1, message[512];
	int status[2], mapped[2], result;
	ssize_t n;

	if (argc > 1 && !strcmp(*rest, "--slave")) {
		propagation = MS_SLAVE;
		rest++;
	}
	if (rest[0] && rest[1] && !strcmp(*rest, "--userns")) {
		if (sscanf(rest[1], "%u:%u", &userns_base, &userns_count) < 1)
			return 2;
		rest += 2;
	}
	if (rest[0] && rest[1] && !strcmp(*rest, "--also")) {
		for (const char *letter = rest[1]; *letter; letter++)
			further |= *letter == 'c' ? CLONE_NEWCGROUP : *letter == 'i' ? CLONE_NEWIPC :
				   *letter == 'n' ? CLONE_NEWNET : CLONE_NEWUTS;
		rest += 2;
	}
	argv = rest;
	while (*rest && !strncmp(*rest, "--r", 3) && rest[1] && rest[2])
		rest += 3;
	if (!rest[0] || !rest[1] || !rest[2])
		return 2;
	if (pipe2(status, O_CLOEXEC) || pipe2(mapped, O_CLOEXEC))
		fail("pipe2", "");
	init_pid = (pid_t)syscall(SYS_clone,
				  CLONE_NEWNS | CLONE_NEWPID | further | (userns_base ? CLONE_NEWUSER : 0) | SIGCHLD, 0, 0, 0, 0);
	if (init_pid < 0)
		fail("clone", "");
	if (!init_pid && userns_base)
		await_mapping(mapped[0]);
	if (!init_pid)
		run_init(argv, rest[0], (unsigned int)atoi(rest[1]), propagation, status[1]);
	if (userns_base) {
		write_map("uid_map");
		write_map("gid_map");
		if (write(mapped[1], "", 1) != 1)
			fail("write", "pipe");
	}
	signal(SIGTERM, end_init);
	if (prctl(PR_SET_PDEATHSIG, SIGTERM))
		fail("prctl", "");
	close(status[1]);
	n = read(status[0], message, sizeof(message));
	if (n > 0 && write(STDERR_FILENO, message, (size_t)n) != n)
		return 125;
	if (!n) {
		printf("%d\n", init_pid);
		fclose(stdout);
	}
	while (waitpid(init_pid, &result, 0) < 0) {
		if (errno != EINTR)
			fail("waitpid", "");
	}
	return WIFEXITED(result) ? WEXITSTATUS(result) : 128 + WTERMSIG(result);
}
