// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes COUNT processes by clone(2) with FLAGS, one after the other; all wait for ever: `share FLAGS [COUNT]`.
 * With CLONE_VFORK it waits in the kernel for the first.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

enum { STACK = 65536, MOST = 4 };

static char stacks[MOST][STACK] __attribute__((aligned(16)));

static int wait_for_ever(void *nothing)
{
	(void)nothing;
	while (pause())
		;
	return 0;
}

int main(int argc, char **argv)
{
	int flags = argc > 1 ? (int)strtol(argv[1], NULL, 0) : 0;
	int count = argc > 2 ? atoi(argv[2]) : 1;

	for (int at = 0; at < count && at < MOST; at++)
		if (clone(wait_for_ever, stacks[at] + STACK, flags | SIGCHLD, NULL) < 0)
			return 1;
	return wait_for_ever(NULL);
}
