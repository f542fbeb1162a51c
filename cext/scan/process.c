// SPDX-License-Identifier: GPL-2.0-only
/* The tasks of one process and the descriptor tables that they have. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "scan.h"

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif

/* How often a process is read anew whose leader ended, or which got threads, while it was read. */
#define MAX_ATTEMPTS 8

struct reader {
	struct ez_walk *walk;
	const struct ez_proc *proc;
	int dirfd;	     /* /proc/PID: names this very process even if the pid is taken again */
	int pidfd;	     /* -1 = not to be had */
	struct ez_map tids;  /* threads read so far */
	struct ez_buf owners; /* int32_t: the tasks under which the process's tables are listed */
};

#define PF_EXITING 0x00000004u /* include/linux/sched.h; field 9 of stat */

/*
 * A task that exits gives up its memory, files and namespaces one after the other before its state tells:
 * what is read of it meanwhile is refused or empty.
 */
static bool is_ending(const struct ez_stat *st)
{
	return st->state == 'Z' || st->state == 'X' || st->state == 'x' || st->flags & PF_EXITING;
}

static bool fatal(int ret)
{
	return ret == -ENOMEM || ret == -EMFILE || ret == -ENFILE || ret == -EOVERFLOW;
}

static bool has_ended(struct reader *reader, int dirfd)
{
	struct ez_stat st;

	return ez_read_stat(dirfd, "stat", &reader->walk->scratch, &st) || is_ending(&st);
}

static int read_namespaces(struct reader *reader, int dirfd, struct ez_task *task)
{
	static const char *const names[] = {"ns/mnt", "ns/net", "ns/pid", "ns/user"};
	uint64_t *const fields[] = {&task->mnt_ns, &task->net_ns, &task->pid_ns, &task->user_ns};
	size_t i;
	int ret;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		ret = ez_read_ns(dirfd, names[i], fields[i]);
		if (!ret)
			continue;
		if (fatal(ret))
			return ret;
		/* An ended task has left its namespaces: no obstacle. */
		if (ret == -ESRCH || task->flags & EZ_TASK_ZOMBIE)
			continue;
		if (has_ended(reader, dirfd))
			return -ESRCH;
		ret = ez_unreadable_add(reader->walk, task->tid, -1, EZ_WHAT_NS, -ret);
		if (ret)
			return ret;
	}
	return 0;
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

static int thread_pidfd(struct reader *reader, int32_t tid)
{
	int fd;

	if (tid == reader->proc->pid)
		return reader->pidfd;
	if (reader->walk->no_pidfd_thread || reader->pidfd < 0)
		return -1;
	fd = ez_pidfd_open(tid, PIDFD_THREAD);
	if (fd == -EINVAL)
		reader->walk->no_pidfd_thread = true;
	return fd;
}

static void mark_gone(struct reader *reader, size_t task_off, size_t fds_off)
{
	struct ez_scan *out = reader->walk->out;
	struct ez_task *task = (struct ez_task *)(out->tasks.data + task_off);

	task->flags = (task->flags | EZ_TASK_GONE) & ~EZ_TASK_SHARES_FILES;
	task->files_tid = 0;
	out->fds.len = fds_off;
}

static int read_table(struct reader *reader, int dirfd, size_t task_off, uint32_t fdsize)
{
	struct ez_walk *walk = reader->walk;
	struct ez_task *task = (struct ez_task *)(walk->out->tasks.data + task_off);
	struct ez_table table = {.dirfd = dirfd, .tid = task->tid, .fdsize = fdsize};
	size_t fds_off = walk->out->fds.len;
	struct ez_stat st;
	int ret;

	ret = ez_buf_append(&reader->owners, &task->tid, sizeof(task->tid));
	if (ret)
		return ret;
	table.pidfd = thread_pidfd(reader, table.tid);
	if (table.pidfd < 0 && fatal(table.pidfd))
		return table.pidfd;
	/*
	 * The lookup through dirfd proves that the thread whose id the pidfd was opened by still had it: they
	 * name the same task. The leader's pidfd was proved when it was opened.
	 */
	ret = ez_read_stat(dirfd, "stat", &walk->scratch, &st);
	if (!ret)
		ret = ez_fdtable_read(walk, &table);
	if (!ret)
		ret = ez_read_stat(dirfd, "stat", &walk->scratch, &st);
	if (table.pidfd >= 0 && table.pidfd != reader->pidfd)
		close(table.pidfd);
	if (ret == -ESRCH || (!ret && is_ending(&st))) {
		mark_gone(reader, task_off, fds_off);
		return 0;
	}
	return ret;
}

static int fill_task(struct reader *reader, int dirfd, struct ez_task *task, uint32_t *fdsize)
{
	struct ez_buf *scratch = &reader->walk->scratch;
	struct ez_status status;
	struct ez_stat st;
	int ret;

	/* kcmp(2) goes by number; the reads through dirfd after it prove that the number was this task's. */
	task->files_tid = find_owner(reader, task->tid);
	ret = ez_read_stat(dirfd, "stat", scratch, &st);
	if (!ret)
		ret = ez_read_status(dirfd, scratch, &status);
	if (ret)
		return ret;
	task->starttime = st.starttime;
	task->ppid = st.ppid;
	task->sid = st.sid;
	memcpy(task->comm, st.comm, sizeof(task->comm));
	task->tgid = status.tgid;
	task->vpid = status.vpid;
	task->vtid = status.vtid;
	task->uid = status.uid;
	task->gid = status.gid;
	*fdsize = status.fdsize;
	if (task->tid == status.tgid)
		task->flags |= EZ_TASK_LEADER;
	if (st.state == 'T' || st.state == 't')
		task->flags |= EZ_TASK_STOPPED;
	if (is_ending(&st)) {
		task->flags |= EZ_TASK_ZOMBIE;
		task->files_tid = 0;
	} else if (task->files_tid) {
		task->flags |= EZ_TASK_SHARES_FILES;
	} else {
		task->files_tid = task->tid;
	}
	return read_namespaces(reader, dirfd, task);
}

static int read_task(struct reader *reader, int dirfd, int32_t tid)
{
	struct ez_walk *walk = reader->walk;
	struct ez_task task = {.tid = tid}, *slot;
	size_t task_off = walk->out->tasks.len;
	uint32_t fdsize;
	void *at;
	int ret;

	ret = fill_task(reader, dirfd, &task, &fdsize);
	if (ret)
		return ret;
	if (tid == reader->proc->pid && task.starttime != reader->proc->starttime)
		return -ESRCH;
	ret = ez_buf_extend(&walk->out->tasks, sizeof(task), &at);
	if (ret)
		return ret;
	slot = at;
	*slot = task;
	ret = ez_mounts_read(walk, dirfd, tid, task.mnt_ns);
	if (ret || task.files_tid != tid)
		return ret;
	return read_table(reader, dirfd, task_off, fdsize);
}

static int read_thread(struct reader *reader, int32_t tid)
{
	int dirfd, ret;

	ret = ez_map_put(&reader->tids, (uint64_t)tid, 1);
	if (ret)
		return ret;
	ret = ez_open_task(reader->dirfd, tid, &dirfd);
	if (!ret) {
		ret = read_task(reader, dirfd, tid);
		close(dirfd);
	}
	/* Whether the process itself ended is found out at the end of it. */
	if (ret == -ESRCH)
		return 0;
	if (!ret || fatal(ret))
		return ret;
	return ez_unreadable_add(reader->walk, tid, -1, EZ_WHAT_TASK, -ret);
}

static int collect_new(void *arg, int32_t tid)
{
	struct reader *reader = arg;

	if (ez_map_get(&reader->tids, (uint64_t)tid))
		return 0;
	return ez_buf_append(&reader->walk->scratch, &tid, sizeof(tid));
}

/* Reads threads until a listing shows no new one. */
static int read_threads(struct reader *reader)
{
	struct ez_buf *scratch = &reader->walk->scratch;
	struct ez_buf news = {0};
	size_t i, count;
	int ret;

	ret = read_thread(reader, reader->proc->pid);
	while (!ret) {
		scratch->len = 0;
		ret = ez_each_number(reader->dirfd, "task", collect_new, reader);
		count = ez_count(scratch, sizeof(int32_t));
		if (ret || !count)
			break;
		/* Reading a thread uses the scratch buffer. */
		news.len = 0;
		ret = ez_buf_append(&news, scratch->data, scratch->len);
		for (i = 0; !ret && i < count; i++)
			ret = read_thread(reader, ((int32_t *)news.data)[i]);
	}
	ez_buf_free(&news);
	return ret;
}

/* 0 = read whole; -EAGAIN = its leader ended meanwhile, other threads may live; -ESRCH = it ended. */
static int read_once(struct reader *reader)
{
	struct ez_walk *walk = reader->walk;
	struct ez_stat before, after;
	int ret;

	ret = ez_read_stat(reader->dirfd, "stat", &walk->scratch, &before);
	if (!ret && before.starttime != reader->proc->starttime)
		ret = -ESRCH;
	if (!ret)
		ret = read_threads(reader);
	if (!ret)
		ret = ez_read_stat(reader->dirfd, "stat", &walk->scratch, &after);
	if (ret)
		return ret;
	return is_ending(&before) == is_ending(&after) ? 0 : -EAGAIN;
}

/* What was recorded of an ended process becomes: it was there, and it is gone. */
static int record_gone(struct ez_walk *walk, const struct ez_proc *proc, size_t tasks_off, size_t fds_off)
{
	struct ez_scan *out = walk->out;
	struct ez_task task = {
		.starttime = proc->starttime,
		.tgid = proc->pid,
		.tid = proc->pid,
		.ppid = proc->ppid,
		.flags = EZ_TASK_LEADER | EZ_TASK_GONE,
	};
	struct ez_task *seen = (struct ez_task *)(out->tasks.data + tasks_off);

	/* Its leader, if it was read, has more to tell than the search had. */
	if (out->tasks.len > tasks_off && seen->tid == proc->pid) {
		task = *seen;
		task.flags = (task.flags | EZ_TASK_GONE) & ~EZ_TASK_SHARES_FILES;
		task.files_tid = 0;
	}
	out->tasks.len = tasks_off;
	out->fds.len = fds_off;
	return ez_buf_append(&out->tasks, &task, sizeof(task));
}

static int open_process(struct reader *reader)
{
	char name[16];

	snprintf(name, sizeof(name), "%d", reader->proc->pid);
	reader->dirfd = openat(reader->walk->proc_fd, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (reader->dirfd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	/* Opened after dirfd and before its first read: if that succeeds, both name the same process. */
	reader->pidfd = ez_pidfd_open(reader->proc->pid, 0);
	return fatal(reader->pidfd) ? reader->pidfd : 0;
}

static int read_attempts(struct reader *reader, size_t tasks_off, size_t fds_off)
{
	struct ez_scan *out = reader->walk->out;
	int ret = -EAGAIN, attempt;

	for (attempt = 0; ret == -EAGAIN && attempt < MAX_ATTEMPTS; attempt++) {
		out->tasks.len = tasks_off;
		out->fds.len = fds_off;
		reader->owners.len = 0;
		ez_map_clear(&reader->tids);
		ret = read_once(reader);
	}
	return ret;
}

int ez_process_read(struct ez_walk *walk, const struct ez_proc *proc)
{
	struct reader reader = {.walk = walk, .proc = proc, .dirfd = -1, .pidfd = -1};
	size_t tasks_off = walk->out->tasks.len, fds_off = walk->out->fds.len;
	int ret;

	ret = open_process(&reader);
	if (!ret)
		ret = read_attempts(&reader, tasks_off, fds_off);
	if (ret == -ESRCH)
		ret = record_gone(walk, proc, tasks_off, fds_off);
	else if (ret && !fatal(ret))
		ret = ez_unreadable_add(walk, proc->pid, -1, EZ_WHAT_TASK, -ret);
	ez_map_free(&reader.tids);
	ez_buf_free(&reader.owners);
	if (reader.pidfd >= 0)
		close(reader.pidfd);
	if (reader.dirfd >= 0)
		close(reader.dirfd);
	return ret;
}
