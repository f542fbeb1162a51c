/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Runs the native scan again and again, each time letting a later allocation of its own fail. Linked with
 * --wrap for malloc, calloc and realloc. usage: scan_oom PID FAILURES. Exits with 0 when every scan either
 * gave all or said -ENOMEM, left no allocation of its own and no descriptor open, and the last one worked.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../cext/scan/scan.h"

static long left = -1; /* allocations until one fails, -1 = none does */
static long balance;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void __real_free(void *old);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void __wrap_free(void *old);

static int fails(void)
{
	if (left < 0)
		return 0;
	return left-- == 0;
}

void *__wrap_malloc(size_t size)
{
	if (fails())
		return NULL;
	balance++;
	return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	if (fails())
		return NULL;
	balance++;
	return __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
	if (fails())
		return NULL;
	if (!old)
		balance++;
	return __real_realloc(old, size);
}

void __wrap_free(void *old)
{
	if (old)
		balance--;
	__real_free(old);
}

static int open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

static int run(int pid, long fail_at, struct ez_scan *sum)
{
	struct ez_scan scan = {0};
	int ret;

	left = fail_at;
	ret = ez_scan_tree(pid, &scan);
	left = -1;
	*sum = scan;
	ez_scan_free(&scan);
	return ret;
}

int main(int argc, char **argv)
{
	struct ez_scan all, one;
	int pid, fds, ret;
	long at, failures = 0;

	if (argc != 3)
		return 2;
	pid = atoi(argv[1]);
	if (run(pid, -1, &all))
		return 3;
	fds = open_fds();
	for (at = 0;; at++) {
		ret = run(pid, at, &one);
		if (balance || open_fds() != fds) {
			printf("allocation %ld: balance %ld, %d descriptors of %d\n", at, balance, open_fds(), fds);
			return 4;
		}
		if (!ret)
			break;
		failures++;
		if (ret != -ENOMEM) {
			printf("allocation %ld: %d\n", at, ret);
			return 5;
		}
	}
	if (failures < atol(argv[2])) {
		printf("only %ld allocations\n", failures);
		return 6;
	}
	return one.tasks.len == all.tasks.len && one.fds.len == all.fds.len && one.socks.len == all.socks.len &&
			       one.mounts.len == all.mounts.len ?
		       0 :
		       7;
}
