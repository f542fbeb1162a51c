// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes a container-like tree of tiny processes with the mounts that it is told to make.
 *
 * mountmaker [--userns BASE] [--ns FLAGS] [STEP ARGUMENT...]...
 *
 * FLAGS are letters: p = pid, c = cgroup, n = net, i = ipc namespace. There is always a new mount namespace.
 * With --userns ids from 0 to 65535 are those from BASE on outside. The steps, run in order by the tree's root:
 *
 *   bind SOURCE TARGET, rbind SOURCE TARGET
 *   mount TYPE SOURCE TARGET OPTIONS
 *   propagate WORD TARGET       private, rprivate, shared, rshared, slave, rslave, unbindable
 *   ro TARGET, umount TARGET, mkdir PATH, touch PATH, rmdir PATH
 *   copy SOURCE TARGET          a program
 *   pivot ROOT                  ROOT must be a mountpoint and hold this program as /init: it goes on as that
 *   chroot PATH, chdir PATH
 *   fork, nested, end           the steps up to `end` are a child's; that of `nested` has its own mount namespace
 *
 * A step that the kernel refuses is left out: random steps are wanted. Only pivot must succeed. When all is done
 * the pid of the tree's root goes to stdout, which is closed; the processes wait for signals for ever, with no
 * descriptor open. Ends with the tree's root, and ends it when its own parent dies.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STATUS 9 /* the descriptor whose end of file says that all is done */

static pid_t init_pid;

static void fail(const char *what, const char *which)
{
	dprintf(STATUS, "mountmaker: %s %s: %s\n", what, which, strerror(errno));
	_exit(125);
}

static void end_init(int sig)
{
	(void)sig;
	kill(init_pid, SIGKILL);
}

static unsigned long propagation(const char *word)
{
	unsigned long recursive = word[0] == 'r' ? MS_REC : 0;

	word += word[0] == 'r';
	if (!strcmp(word, "shared"))
		return recursive | MS_SHARED;
	if (!strcmp(word, "slave"))
		return recursive | MS_SLAVE;
	if (!strcmp(word, "unbindable"))
		return recursive | MS_UNBINDABLE;
	return recursive | MS_PRIVATE;
}

static void copy(const char *from, const char *to)
{
	char buffer[1 << 16];
	int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0755);
	ssize_t n;

	while (in >= 0 && out >= 0 && (n = read(in, buffer, sizeof(buffer))) > 0) {
		if (write(out, buffer, (size_t)n) != n)
			break;
	}
	close(in);
	close(out);
}

static void pivot(char **rest)
{
	char *root = rest[0];

	if (chdir(root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		fail("pivot_root", root);
	rest[0] = "--inside";
	/* argv[0] of the program that goes on is never looked at. */
	execv("/init", rest - 1);
	fail("exec /init in", root);
}

static void wait_for_ever(void)
{
	int null = open("/", O_PATH);

	/* criu wants nothing of descriptors: leave none, in whichever range. */
	(void)null;
	syscall(SYS_close_range, 0, ~0U, 0);
	for (;;)
		pause();
}

static char **skip_child(char **step)
{
	int depth = 1;

	for (; *step && depth; step++) {
		if (!strcmp(*step, "fork") || !strcmp(*step, "nested"))
			depth++;
		else if (!strcmp(*step, "end"))
			depth--;
	}
	return step;
}

/* The child begins only when its turn comes, and its parent goes on only when the child has made its mounts. */
static char **child(char **step, int nested)
{
	int done[2];
	char byte;
	pid_t pid;

	if (pipe2(done, O_CLOEXEC))
		fail("pipe2", "");
	pid = fork();
	if (pid < 0)
		fail("fork", "");
	if (!pid) {
		if (nested && unshare(CLONE_NEWNS))
			fail("unshare", "");
		return step;
	}
	close(done[1]);
	if (read(done[0], &byte, 1))
		fail("read", "pipe");
	close(done[0]);
	return skip_child(step);
}

static void run(char **step)
{
	while (*step && strcmp(*step, "end")) {
		const char *word = *step++;

		if (!strcmp(word, "bind") || !strcmp(word, "rbind")) {
			mount(step[0], step[1], NULL, MS_BIND | (word[0] == 'r' ? MS_REC : 0), NULL);
			step += 2;
		} else if (!strcmp(word, "mount")) {
			mount(step[1], step[2], step[0], 0, step[3]);
			step += 4;
		} else if (!strcmp(word, "propagate")) {
			mount(NULL, step[1], NULL, propagation(step[0]), NULL);
			step += 2;
		} else if (!strcmp(word, "copy")) {
			copy(step[0], step[1]);
			step += 2;
		} else if (!strcmp(word, "ro")) {
			mount(NULL, *step++, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL);
		} else if (!strcmp(word, "umount")) {
			umount2(*step++, MNT_DETACH);
		} else if (!strcmp(word, "mkdir")) {
			mkdir(*step++, 0755);
		} else if (!strcmp(word, "rmdir")) {
			rmdir(*step++);
		} else if (!strcmp(word, "touch")) {
			close(open(*step++, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
		} else if (!strcmp(word, "chroot")) {
			if (!chroot(*step++) && chdir("/"))
				fail("chdir", "/");
		} else if (!strcmp(word, "chdir")) {
			if (chdir(*step++))
				fail("chdir", step[-1]);
		} else if (!strcmp(word, "pivot")) {
			pivot(step);
		} else if (!strcmp(word, "fork") || !strcmp(word, "nested")) {
			step = child(step, word[0] == 'n');
		} else {
			errno = EINVAL;
			fail("step", word);
		}
	}
	wait_for_ever();
}

/* The other side of the mapping: root by it, nobody else's parent. */
static void become_root(int mapped, unsigned int base)
{
	char byte;

	if (read(mapped, &byte, 1) != 1 || setgroups(0, NULL))
		fail("wait for", "mapping");
	if (base && (setresgid(0, 0, 0) || setresuid(0, 0, 0)))
		fail("become root in", "user namespace");
}

static void write_map(const char *name, unsigned int base)
{
	char path[64], line[64];
	int fd, len = snprintf(line, sizeof(line), "0 %u 65536\n", base);

	snprintf(path, sizeof(path), "/proc/%d/%s", init_pid, name);
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, line, (size_t)len) != len)
		fail("write", path);
	close(fd);
}

static unsigned long namespaces(const char *letters)
{
	return (strchr(letters, 'p') ? CLONE_NEWPID : 0) | (strchr(letters, 'c') ? CLONE_NEWCGROUP : 0) |
	       (strchr(letters, 'n') ? CLONE_NEWNET : 0) | (strchr(letters, 'i') ? CLONE_NEWIPC : 0);
}

int main(int argc, char **argv)
{
	unsigned long flags = CLONE_NEWNS | SIGCHLD;
	unsigned int base = 0;
	int status[2], mapped[2], result;
	char message[512];
	ssize_t n;

	if (argc > 1 && !strcmp(argv[1], "--inside"))
		run(argv + 2);
	for (argv++; *argv && argv[1] && argv[0][0] == '-'; argv += 2) {
		if (!strcmp(*argv, "--userns"))
			base = (unsigned int)atoi(argv[1]);
		else
			flags |= namespaces(argv[1]);
	}
	if (pipe2(status, O_CLOEXEC) || pipe2(mapped, O_CLOEXEC))
		return 125;
	init_pid = (pid_t)syscall(SYS_clone, flags | (base ? CLONE_NEWUSER : 0), 0, 0, 0, 0);
	if (init_pid < 0) {
		perror("mountmaker: clone");
		return 125;
	}
	if (!init_pid) {
		if (dup2(status[1], STATUS) < 0)
			_exit(125);
		become_root(mapped[0], base);
		if (setsid() < 0)
			fail("setsid", "");
		run(argv);
	}
	signal(SIGTERM, end_init);
	if (prctl(PR_SET_PDEATHSIG, SIGTERM))
		return 125;
	if (base) {
		write_map("uid_map", base);
		write_map("gid_map", base);
	}
	if (write(mapped[1], "", 1) != 1)
		return 125;
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
			return 125;
	}
	return WIFEXITED(result) ? WEXITSTATUS(result) : 128 + WTERMSIG(result);
}
