// SPDX-License-Identifier: GPL-2.0-only
/* The tasks of one process and the descriptor tables that they have. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
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
	struct ez_map tids;   /* threads read so far */
	struct ez_buf owners; /* int32_t: the tasks under which the process's tables are listed */
	uint64_t pid_ns, user_ns;
	bool leader_ends; /* it did when it was read */
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

/* 1 = yes, 0 = no, or -errno. */
static int has_ended(struct reader *reader, int dirfd)
{
	struct ez_stat st;
	int ret = ez_read_stat(dirfd, "stat", &reader->walk->scratch, &st);

	return ret ? (ret == -ESRCH ? 1 : ret) : is_ending(&st);
}

static int read_namespace(struct reader *reader, int dirfd, const char *name, struct ez_task *task, uint64_t *out)
{
	int ret = ez_read_ns(dirfd, name, out), ended;

	if (!ret || ez_fatal(ret))
		return ret;
	/* An ended task has left its namespaces: no obstacle. */
	if (ret == -ESRCH || task->flags & EZ_TASK_ZOMBIE)
		return 0;
	ended = has_ended(reader, dirfd);
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
	ended = has_ended(reader, table->dirfd);
	ret = ended ? 0 : ez_fdtable_read(reader->walk, table);
	if (table->pidfd >= 0)
		close(table->pidfd);
	if (!ended && (!ret || ret == -ESRCH))
		ended = has_ended(reader, table->dirfd);
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

static void set_state(struct ez_task *task, const struct ez_stat *st)
{
	if (st->state == 'T' || st->state == 't')
		task->flags |= EZ_TASK_STOPPED;
	if (is_ending(st)) {
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

static int fill_task(struct reader *reader, int dirfd, struct ez_task *task, uint32_t *fdsize)
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
		reader->leader_ends = is_ending(&st);
	}
	set_state(task, &st);
	ret = read_namespaces(reader, dirfd, task);
	return ret ? ret : set_identity(reader, dirfd, task, fdsize);
}

static int read_task(struct reader *reader, int dirfd, int32_t tid)
{
	struct ez_walk *walk = reader->walk;
	struct ez_task task = {.tid = tid, .tgid = reader->proc->pid};
	size_t task_off = walk->out->tasks.len;
	uint32_t fdsize = 0;
	int ret;

	ret = fill_task(reader, dirfd, &task, &fdsize);
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
	return is_ending(&after) == reader->leader_ends ? 0 : -EAGAIN;
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
