// SPDX-License-Identifier: GPL-2.0-only
/*
 * A preload library that answers reads of another process's limits from /proc/PID/limits.
 *
 * prlimit(2) on a process of another user needs CAP_SYS_RESOURCE even for reading; root in a container
 * often lacks it, and criu then can't dump the process. The file holds the same numbers and may be read by
 * everybody. Only a read that the kernel refused with EPERM is answered here; nothing is ever set.
 *
 * criu calls syscall(__NR_prlimit64, ...), not prlimit(), so syscall() is overridden as well. All other
 * calls are passed on to the C library's own syscall().
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* The file has 17 lines of at most 78 bytes (fs/proc/base.c, proc_pid_limits). */
#define LIMITS_SIZE 4096

/* Names as in fs/proc/base.c, by RLIMIT_*: the kernel promises them by use, see proc_pid_limits(5). */
static const char *const limit_names[] = {
	[RLIMIT_CPU] = "Max cpu time",
	[RLIMIT_FSIZE] = "Max file size",
	[RLIMIT_DATA] = "Max data size",
	[RLIMIT_STACK] = "Max stack size",
	[RLIMIT_CORE] = "Max core file size",
	[RLIMIT_RSS] = "Max resident set",
	[RLIMIT_NPROC] = "Max processes",
	[RLIMIT_NOFILE] = "Max open files",
	[RLIMIT_MEMLOCK] = "Max locked memory",
	[RLIMIT_AS] = "Max address space",
	[RLIMIT_LOCKS] = "Max file locks",
	[RLIMIT_SIGPENDING] = "Max pending signals",
	[RLIMIT_MSGQUEUE] = "Max msgqueue size",
	[RLIMIT_NICE] = "Max nice priority",
	[RLIMIT_RTPRIO] = "Max realtime priority",
	[RLIMIT_RTTIME] = "Max realtime timeout",
};

#define LIMIT_COUNT (sizeof(limit_names) / sizeof(limit_names[0]))

typedef long (*syscall_fn)(long number, ...);

static syscall_fn next_syscall;

/* Looked up before main: dlsym() may allocate, and criu calls us between fork and exec. */
__attribute__((constructor)) static void find_next(void)
{
	next_syscall = (syscall_fn)dlsym(RTLD_NEXT, "syscall");
}

static long kernel_prlimit(pid_t pid, int resource, const struct rlimit64 *new_limit, struct rlimit64 *old_limit)
{
	if (!next_syscall)
		find_next();
	return next_syscall(SYS_prlimit64, (long)pid, (long)resource, new_limit, old_limit);
}

/* Reads one number or "unlimited", after blanks. Returns the first byte after it, or NULL. */
static const char *parse_value(const char *text, const char *end, uint64_t *value)
{
	static const char unlimited[] = "unlimited";
	const char *start;
	uint64_t number = 0;

	while (text < end && *text == ' ')
		text++;
	if ((size_t)(end - text) >= sizeof(unlimited) - 1 && !memcmp(text, unlimited, sizeof(unlimited) - 1)) {
		text += sizeof(unlimited) - 1;
		number = RLIM64_INFINITY;
	} else {
		for (start = text; text < end && *text >= '0' && *text <= '9'; text++)
			if (__builtin_mul_overflow(number, 10, &number) ||
			    __builtin_add_overflow(number, (uint64_t)(*text - '0'), &number))
				return NULL;
		if (text == start)
			return NULL;
	}
	if (text < end && *text != ' ' && *text != '\n')
		return NULL;
	*value = number;
	return text;
}

/* Finds a limit in the text of /proc/PID/limits. Returns 0, or -EPROTO if it isn't there as expected. */
static int parse_limits(const char *text, size_t size, int resource, struct rlimit64 *limit)
{
	const char *name = limit_names[resource];
	const size_t length = strlen(name);
	const char *end = text + size;
	uint64_t soft, hard;

	while (text < end) {
		const char *newline = memchr(text, '\n', end - text);

		if (!newline)
			return -EPROTO; /* a cut line could hold a cut number */
		if ((size_t)(newline - text) > length && !memcmp(text, name, length) && text[length] == ' ') {
			text = parse_value(text + length, newline, &soft);
			if (!text || !parse_value(text, newline, &hard) || soft > hard)
				return -EPROTO;
			limit->rlim_cur = soft;
			limit->rlim_max = hard;
			return 0;
		}
		text = newline + 1;
	}
	return -EPROTO;
}

/* Returns 0 or -errno. Uses no heap and no stdio stream: the caller may be a child right after fork. */
static int read_limits(pid_t pid, int resource, struct rlimit64 *limit)
{
	char path[sizeof("/proc/-2147483648/limits")];
	char text[LIMITS_SIZE];
	size_t size = 0;
	ssize_t got;
	int fd;

	if (resource < 0 || (size_t)resource >= LIMIT_COUNT)
		return -EINVAL;
	snprintf(path, sizeof(path), "/proc/%d/limits", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return -errno;
	while (size < sizeof(text)) {
		got = read(fd, text + size, sizeof(text) - size);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		size += (size_t)got;
	}
	close(fd);
	return parse_limits(text, size, resource, limit);
}

static long shim_prlimit(pid_t pid, int resource, const struct rlimit64 *new_limit, struct rlimit64 *old_limit)
{
	const int saved = errno;
	const long ret = kernel_prlimit(pid, resource, new_limit, old_limit);

	if (ret != -1 || errno != EPERM || new_limit || !old_limit || pid <= 0)
		return ret;
	if (read_limits(pid, resource, old_limit)) {
		errno = EPERM;
		return -1;
	}
	errno = saved;
	return 0;
}

#if __SIZEOF_LONG__ == 8
/* Only where struct rlimit and struct rlimit64 are the same. */
EXPORT int prlimit(pid_t pid, enum __rlimit_resource resource, const struct rlimit *new_limit,
		   struct rlimit *old_limit)
{
	return (int)shim_prlimit(pid, (int)resource, (const struct rlimit64 *)new_limit,
				 (struct rlimit64 *)old_limit);
}
#endif

EXPORT int prlimit64(pid_t pid, enum __rlimit_resource resource, const struct rlimit64 *new_limit,
		     struct rlimit64 *old_limit)
{
	return (int)shim_prlimit(pid, (int)resource, new_limit, old_limit);
}

/*
 * No call that shares the caller's stack with a running child may come through here, as such a child would
 * overwrite this frame; criu makes none by syscall() (and the C library's own would not survive it either).
 */
EXPORT long syscall(long number, ...)
{
	long args[6];
	va_list list;

	va_start(list, number);
	for (unsigned int i = 0; i < 6; i++)
		args[i] = va_arg(list, long);
	va_end(list);

	if (number == SYS_prlimit64)
		return shim_prlimit((pid_t)args[0], (int)args[1], (const struct rlimit64 *)args[2],
				    (struct rlimit64 *)args[3]);
	if (!next_syscall)
		find_next();
	return next_syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]);
}
