// SPDX-License-Identifier: GPL-2.0-only
/*
 * LD_PRELOAD for the real criu in tests: stops the process (SIGSTOP), which is then called "held", at a moment that
 * $STOP_AT names, once: so a test can kill whom it likes at a known moment.
 *
 *   STOP_AT=NAME		right before a file is opened whose name contains NAME, such as "pages-"
 *   STOP_AT=injected-call	right before a task of the tree is let run with registers that criu has set
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <unistd.h>

static int stopped;

static void consider(const char *moment)
{
	const char *at = getenv("STOP_AT");

	/* criu's action-scripts inherit the environment, too. */
	if (!at || stopped || strcmp(program_invocation_short_name, "criu") || !strstr(moment, at))
		return;
	stopped = 1;
	prctl(PR_SET_NAME, "held");
	kill(getpid(), SIGSTOP);
}

int openat64(int dirfd, const char *path, int flags, ...)
{
	static int (*next)(int, const char *, int, ...);
	mode_t mode = 0;
	va_list args;

	if (flags & O_CREAT) {
		va_start(args, flags);
		mode = va_arg(args, mode_t);
		va_end(args);
	}
	if (!next)
		next = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat64");
	consider(path);
	return next(dirfd, path, flags, mode);
}

int openat(int dirfd, const char *path, int flags, ...) __attribute__((alias("openat64")));

int open64(const char *path, int flags, ...)
{
	static int (*next)(const char *, int, ...);
	mode_t mode = 0;
	va_list args;

	if (flags & O_CREAT) {
		va_start(args, flags);
		mode = va_arg(args, mode_t);
		va_end(args);
	}
	if (!next)
		next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
	consider(path);
	return next(path, flags, mode);
}

int open(const char *path, int flags, ...) __attribute__((alias("open64")));

FILE *fopen64(const char *path, const char *mode)
{
	static FILE *(*next)(const char *, const char *);

	if (!next)
		next = (FILE *(*)(const char *, const char *))dlsym(RTLD_NEXT, "fopen64");
	consider(path);
	return next(path, mode);
}

FILE *fopen(const char *path, const char *mode) __attribute__((alias("fopen64")));

long ptrace(enum __ptrace_request request, ...)
{
	static long (*next)(int, pid_t, void *, void *);
	static int registers_set;
	va_list args;
	pid_t pid;
	void *addr, *data;

	va_start(args, request);
	pid = va_arg(args, pid_t);
	addr = va_arg(args, void *);
	data = va_arg(args, void *);
	va_end(args);
	if (!next)
		next = (long (*)(int, pid_t, void *, void *))dlsym(RTLD_NEXT, "ptrace");
	if (request == PTRACE_SETREGSET || request == PTRACE_SETREGS)
		registers_set = 1;
	if (request == PTRACE_CONT && registers_set)
		consider("injected-call");
	return next(request, pid, addr, data);
}
