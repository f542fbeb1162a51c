// SPDX-License-Identifier: GPL-2.0-only
/*
 * Waits for ever, with COUNT children that wait, too, each in a mount namespace of its own: `pause [COUNT]`.
 * Ends when it is killed; as init of a pid namespace it takes them with it.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	for (int left = argc > 1 ? atoi(argv[1]) : 0; left > 0; left--) {
		if (fork())
			continue;
		if (unshare(CLONE_NEWNS))
			_exit(1);
		break;
	}
	prctl(PR_SET_NAME, "paused"); /* what is awaited by who started it */
	for (;;)
		pause();
}
