// SPDX-License-Identifier: GPL-2.0-only
/* The tasks of one process and the descriptor tables that they have. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "task.h"

/* How often a process is read anew whose leader ended, or which got threads, while it was read. */
#define MAX_ATTEMPTS 8

/* A pidfd of a thread with a table of its own; negative = not to be had. */
static int thread_pidfd(struct reader *reader, int32_t tid)
{
	int fd;

	if (reader->walk->no_pidfd_thread || reader->pidfd < 0)
		return -1;
	fd = ez_pidfd_open(tid, PIDFD_THREAD);
	if (fd == -EINVAL)
		reader->walk->no_pidfd_thread = true;
	return fd;
}

static struct ez_task *task_at(struct reader *reader, size_t offset)
{
	return (struct ez_task *)(reader->walk->out->tasks.data + offset);
}

static int read_thread_table(struct reader *reader, struct ez_table *table, size_t task_off)
{
	struct ez_scan *out = reader->walk->out;
	size_t fds_off = out->fds.len, unreadable_off = out->unreadable.len;
	int ret, ended;

	table->pidfd = thread_pidfd(reader, table->tid);
	if (table->pidfd < 0 && ez_fatal(table->pidfd))
		return table->pidfd;
	/*
	 * The lookup through dirfd proves that the thread whose id the pidfd was opened by still had it: they
	 * name the same task.
	 */
	ended = ez_has_ended(reader, table->dirfd);
	ret = ended ? 0 : ez_fdtable_read(reader->walk, table);
	if (table->pidfd >= 0)
		close(table->pidfd);
	if (!ended && (!ret || ret == -ESRCH))
		ended = ez_has_ended(reader, table->dirfd);
	if (ended <= 0)
		return ended ? ended : ret;
	out->fds.len = fds_off;
	out->unreadable.len = unreadable_off;
	task_at(reader, task_off)->flags |= EZ_TASK_GONE;
	task_at(reader, task_off)->files_tid = 0;
	return 0;
}

static int read_table(struct reader *reader, int dirfd, size_t task_off, uint32_t fdsize)
{
	struct ez_table table = {
		.dirfd = dirfd,
		.pidfd = reader->pidfd,
		.tid = task_at(reader, task_off)->tid,
		.fdsize = fdsize,
	};
	int ret = ez_buf_append(&reader->owners, &table.tid, sizeof(table.tid));

	if (ret)
		return ret;
	/* Whether the leader is still there is found out at the end of the process. */
	if (table.tid == reader->proc->pid)
		return ez_fdtable_read(reader->walk, &table);
	return read_thread_table(reader, &table, task_off);
}

static int read_task(struct reader *reader, int dirfd, int32_t tid)
{
	struct ez_walk *walk = reader->walk;
	struct ez_task task = {.tid = tid, .tgid = reader->proc->pid};
	size_t task_off = walk->out->tasks.len;
	uint32_t fdsize = 0;
	int ret;

	ret = ez_task_fill(reader, dirfd, &task, &fdsize);
	if (!ret)
		ret = ez_buf_append(&walk->out->tasks, &task, sizeof(task));
	if (!ret)
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
	if (!ret)
		return 0;
	return ez_unreadable_add(reader->walk, tid, -1, EZ_WHAT_TASK, -ret);
}

static int collect_new(void *arg, int32_t tid)
{
	struct reader *reader = arg;

	if (ez_map_get(&reader->tids, (uint64_t)tid))
		return 0;
	return ez_buf_append(&reader->walk->scratch, &tid, sizeof(tid));
}

static int read_new_threads(struct reader *reader, size_t *count)
{
	struct ez_buf *scratch = &reader->walk->scratch;
	struct ez_buf news = {0};
	size_t i;
	int ret;

	scratch->len = 0;
	ret = ez_each_number(reader->dirfd, "task", collect_new, reader);
	/* Reading a thread uses the scratch buffer. */
	if (!ret)
		ret = ez_buf_append(&news, scratch->data, scratch->len);
	*count = ez_count(&news, sizeof(int32_t));
	for (i = 0; !ret && i < *count; i++)
		ret = read_thread(reader, ((int32_t *)news.data)[i]);
	ez_buf_free(&news);
	return ret;
}

/* 0 = read whole; -EAGAIN = its leader ended meanwhile, other threads may live; -ESRCH = it ended. */
static int read_once(struct reader *reader)
{
	struct ez_stat after;
	size_t fresh = 1;
	int ret;

	ret = read_thread(reader, reader->proc->pid);
	while (!ret) {
		ret = ez_read_stat(reader->dirfd, "stat", &reader->walk->scratch, &after);
		/* No listing is needed to know that the leader is alone, or after one that showed nothing new. */
		if (ret || !fresh || (after.threads == 1 && reader->tids.used == 1))
			break;
		ret = read_new_threads(reader, &fresh);
	}
	if (ret)
		return ret;
	if (after.starttime != reader->proc->starttime)
		return -ESRCH;
	return ez_is_ending(&after) == reader->leader_ends ? 0 : -EAGAIN;
}

/* Where the records of the process begin. */
struct start {
	size_t tasks, fds, unreadable;
};

static struct start mark(const struct ez_scan *out)
{
	return (struct start){out->tasks.len, out->fds.len, out->unreadable.len};
}

static void go_back(struct ez_scan *out, const struct start *start)
{
	out->tasks.len = start->tasks;
	out->fds.len = start->fds;
	out->unreadable.len = start->unreadable;
}

/*
 * What was recorded of an ended process becomes: it was there, and it is gone. What could not be read of it
 * is no obstacle any more, as a rule it could not because it ended.
 */
static int record_gone(struct ez_walk *walk, const struct ez_proc *proc, const struct start *start)
{
	struct ez_scan *out = walk->out;
	struct ez_task task = {
		.starttime = proc->starttime,
		.tgid = proc->pid,
		.tid = proc->pid,
		.ppid = proc->ppid,
		.flags = EZ_TASK_LEADER | EZ_TASK_GONE,
	};
	struct ez_task *seen = (struct ez_task *)(out->tasks.data + start->tasks);

	/* Its leader, if it was read, has more to tell than the search had. */
	if (out->tasks.len > start->tasks && seen->tid == proc->pid) {
		task = *seen;
		task.flags = (task.flags | EZ_TASK_GONE) & ~EZ_TASK_SHARES_FILES;
		task.files_tid = 0;
	}
	go_back(out, start);
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
	return ez_fatal(reader->pidfd) ? reader->pidfd : 0;
}

static int read_attempts(struct reader *reader, const struct start *start)
{
	int ret = -EAGAIN, attempt;

	for (attempt = 0; ret == -EAGAIN && attempt < MAX_ATTEMPTS; attempt++) {
		go_back(reader->walk->out, start);
		reader->owners.len = 0;
		reader->leader_ends = false;
		ez_map_clear(&reader->tids);
		ret = read_once(reader);
	}
	return ret;
}

int ez_process_read(struct ez_walk *walk, const struct ez_proc *proc)
{
	struct reader reader = {.walk = walk, .proc = proc, .dirfd = -1, .pidfd = -1};
	const struct start start = mark(walk->out);
	int ret;

	ret = open_process(&reader);
	if (!ret)
		ret = read_attempts(&reader, &start);
	if (ret == -ESRCH) {
		ret = record_gone(walk, proc, &start);
	} else if (ret) {
		go_back(walk->out, &start);
		ret = ez_unreadable_add(walk, proc->pid, -1, EZ_WHAT_TASK, -ret);
	}
	ez_map_free(&reader.tids);
	ez_buf_free(&reader.owners);
	if (reader.pidfd >= 0)
		close(reader.pidfd);
	if (reader.dirfd >= 0)
		close(reader.dirfd);
	return ret;
}
