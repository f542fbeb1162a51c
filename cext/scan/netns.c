// SPDX-License-Identifier: GPL-2.0-only
/*
 * Descriptors opened in other namespaces.
 *
 * setns(2) changes the calling thread only, so it is done in a thread that lives just for that: the threads
 * of the program keep their namespaces. What the thread opens belongs to the other namespace for good and
 * is used from the caller's thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "scan.h"

struct errand {
	int (*open)(void);
	int nsfd;
	int nstype;
	int proc_fd;
	int result; /* a descriptor or -errno */
};

static int open_diag(void)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

	return fd < 0 ? -errno : fd;
}

static void *run_errand(void *arg)
{
	struct errand *errand = arg;
	int fd;

	/* setns(2) to a mount namespace is refused while root and working directory are shared. */
	if (errand->nstype == CLONE_NEWNS && unshare(CLONE_FS)) {
		errand->result = -errno;
		return NULL;
	}
	if (setns(errand->nsfd, errand->nstype)) {
		errand->result = -errno;
		return NULL;
	}
	if (errand->open) {
		errand->result = errand->open();
		return NULL;
	}
	fd = openat(errand->proc_fd, "thread-self/mountinfo", O_RDONLY | O_CLOEXEC);
	errand->result = fd < 0 ? -errno : fd;
	return NULL;
}

static int run_in_thread(struct errand *errand)
{
	sigset_t all, before;
	pthread_t thread;
	int ret;

	/* The thread inherits a full mask: no handler of the program may run in it. */
	sigfillset(&all);
	ret = pthread_sigmask(SIG_SETMASK, &all, &before);
	if (ret)
		return -ret;
	ret = pthread_create(&thread, NULL, run_errand, errand);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (ret)
		return -ret;
	ret = pthread_join(thread, NULL);
	return ret ? -ret : errand->result;
}

int ez_diag_socket(int nsfd, int *fd_out)
{
	struct errand errand = {.open = open_diag, .nsfd = nsfd, .nstype = CLONE_NEWNET};
	int ret = nsfd < 0 ? open_diag() : run_in_thread(&errand);

	if (ret < 0)
		return ret;
	*fd_out = ret;
	return 0;
}

int ez_mountinfo_open_in(int nsfd, int proc_fd, int *fd_out)
{
	struct errand errand = {.nsfd = nsfd, .nstype = CLONE_NEWNS, .proc_fd = proc_fd};
	int ret = run_in_thread(&errand);

	if (ret < 0)
		return ret;
	*fd_out = ret;
	return 0;
}
