/* SPDX-License-Identifier: GPL-2.0-only */
/* One process while it is read: what process.c and task.c share. */
#ifndef EXTERNALIZER_SCAN_TASK_H
#define EXTERNALIZER_SCAN_TASK_H

#include "scan.h"

struct reader {
	struct ez_walk *walk;
	const struct ez_proc *proc;
	int dirfd;	     /* /proc/PID: names this very process even if the pid is taken again */
	int pidfd;	     /* -1 = not to be had */
	struct ez_map tids;   /* threads read so far */
	struct ez_buf owners; /* int32_t: the tasks under which the process's tables are listed */
	uint64_t pid_ns, user_ns;
	bool leader_ends; /* it did when it was read */
};

/* Whether a task exits or has exited. */
bool ez_is_ending(const struct ez_stat *st);
/* The same of the task behind /proc directory `dirfd`: 1 = yes, 0 = no, or -errno. */
int ez_has_ended(struct reader *reader, int dirfd);
/* Fills in a task whose tid and tgid are set; fdsize only where its table is to be read. -ESRCH: it ended. */
int ez_task_fill(struct reader *reader, int dirfd, struct ez_task *task, uint32_t *fdsize);

#endif
