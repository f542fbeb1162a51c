// SPDX-License-Identifier: GPL-2.0-only
/* The facts about one thread. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "task.h"

#define PF_EXITING 0x00000004u /* include/linux/sched.h; field 9 of stat */

/*
 * A task that exits gives up its memory, files and namespaces one after the other before its state tells:
 * what is read of it meanwhile is refused or empty.
 */
bool ez_is_ending(const struct ez_stat *st)
{
	return st->state == 'Z' || st->state == 'X' || st->state == 'x' || st->flags & PF_EXITING;
}

int ez_has_ended(struct reader *reader, int dirfd)
{
	struct ez_stat st;
	int ret = ez_read_stat(dirfd, "stat", &reader->walk->scratch, &st);

	return ret ? (ret == -ESRCH ? 1 : ret) : ez_is_ending(&st);
}

static int read_namespace(struct reader *reader, int dirfd, const char *name, struct ez_task *task, uint64_t *out)
{
	int ret = ez_read_ns(dirfd, name, out), ended;

	if (!ret || ez_fatal(ret))
		return ret;
	/* An ended task has left its namespaces: no obstacle. */
	if (ret == -ESRCH || task->flags & EZ_TASK_ZOMBIE)
		return 0;
	ended = ez_has_ended(reader, dirfd);
	if (ended)
		return ended < 0 ? ended : -ESRCH;
	return ez_unreadable_add(reader->walk, task->tid, -1, EZ_WHAT_NS, -ret);
}

/*
 * The task under which the table of `tid` is listed already, or 0. Without kcmp(2) none is known to be
 * shared and every thread is listed on its own: more work, the same truth.
 */
static int32_t find_owner(const struct reader *reader, int32_t tid)
{
	const int32_t *owners = (const int32_t *)reader->owners.data;
	size_t i;

	for (i = 0; i < ez_count(&reader->owners, sizeof(*owners)); i++) {
		if (!syscall(SYS_kcmp, owners[i], tid, KCMP_FILES, 0, 0))
			return owners[i];
	}
	return 0;
}

static void set_state(struct ez_task *task, const struct ez_stat *st)
{
	if (st->state == 'T' || st->state == 't')
		task->flags |= EZ_TASK_STOPPED;
	if (ez_is_ending(st)) {
		task->flags |= EZ_TASK_ZOMBIE;
		task->files_tid = 0;
	} else if (task->files_tid) {
		task->flags |= EZ_TASK_SHARES_FILES;
	} else {
		task->files_tid = task->tid;
	}
}

/*
 * Credentials and numbers. The owner of a task's directory is its effective uid and gid, by a promise of the
 * kernel (task_dump_owner in fs/proc/base.c): for the many threads that share all else that saves the status
 * file, the dearest of all. The numbers of a thread differ from ours only in a pid namespace of its own.
 */
static int set_identity(struct reader *reader, int dirfd, struct ez_task *task, uint32_t *fdsize)
{
	struct ez_status status;
	struct stat st;
	int ret;

	if (task->files_tid != task->tid && task->pid_ns && task->pid_ns == reader->walk->own_pid_ns) {
		if (fstat(dirfd, &st))
			return errno == ENOENT ? -ESRCH : -errno;
		task->vpid = task->tgid;
		task->vtid = task->tid;
		task->uid = st.st_uid;
		task->gid = st.st_gid;
		return 0;
	}
	ret = ez_read_status(dirfd, &reader->walk->scratch, &status);
	if (ret)
		return ret;
	task->vpid = status.vpid;
	task->vtid = status.vtid;
	task->uid = status.uid;
	task->gid = status.gid;
	*fdsize = status.fdsize;
	return 0;
}

/* Threads of a process can differ in mount and net namespace, never in the two others: clone(2), setns(2). */
static int read_namespaces(struct reader *reader, int dirfd, struct ez_task *task)
{
	int ret;

	ret = read_namespace(reader, dirfd, "ns/mnt", task, &task->mnt_ns);
	if (!ret)
		ret = read_namespace(reader, dirfd, "ns/net", task, &task->net_ns);
	if (!ret && !reader->pid_ns)
		ret = read_namespace(reader, dirfd, "ns/pid", task, &reader->pid_ns);
	if (!ret && !reader->user_ns)
		ret = read_namespace(reader, dirfd, "ns/user", task, &reader->user_ns);
	task->pid_ns = reader->pid_ns;
	task->user_ns = reader->user_ns;
	return ret;
}

int ez_task_fill(struct reader *reader, int dirfd, struct ez_task *task, uint32_t *fdsize)
{
	struct ez_stat st;
	int ret;

	/* kcmp(2) goes by number; the reads through dirfd after it prove that the number was this task's. */
	task->files_tid = find_owner(reader, task->tid);
	ret = ez_read_stat(dirfd, "stat", &reader->walk->scratch, &st);
	if (ret)
		return ret;
	task->starttime = st.starttime;
	task->ppid = st.ppid;
	task->sid = st.sid;
	memcpy(task->comm, st.comm, sizeof(task->comm));
	if (task->tid == task->tgid) {
		if (st.starttime != reader->proc->starttime)
			return -ESRCH;
		task->flags |= EZ_TASK_LEADER;
		reader->leader_ends = ez_is_ending(&st);
	}
	set_state(task, &st);
	ret = read_namespaces(reader, dirfd, task);
	return ret ? ret : set_identity(reader, dirfd, task, fdsize);
}
