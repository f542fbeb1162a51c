// SPDX-License-Identifier: GPL-2.0-only
/* The scan of a tree from its root to its sockets. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scan.h"

/* A tree that still has new processes after so many searches grows faster than it can be read. */
#define MAX_ROUNDS 64

#define PF_KTHREAD 0x00200000u /* include/linux/sched.h */

int ez_unreadable_add(struct ez_walk *walk, int32_t tid, int32_t fd, enum ez_what what, int error)
{
	struct ez_unreadable record = {tid, fd, what, error};

	if (ez_fatal(-error))
		return -error;
	return ez_buf_append(&walk->out->unreadable, &record, sizeof(record));
}

/* Device numbers of the kernel's pseudo file systems, by samples of our own. */
static int learn_devices(struct ez_walk *walk)
{
	struct stat st;
	int fds[2], sock, ret;

	sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return -errno;
	ret = fstat(sock, &st) ? -errno : 0;
	close(sock);
	if (ret)
		return ret;
	walk->out->sock_dev = st.st_dev;
	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	ret = fstat(fds[0], &st) ? -errno : 0;
	close(fds[0]);
	close(fds[1]);
	walk->pipe_dev = st.st_dev;
	return ret;
}

static int open_proc(struct ez_walk *walk)
{
	walk->proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (walk->proc_fd < 0)
		return -errno;
	walk->no_children = faccessat(walk->proc_fd, "thread-self/children", F_OK, 0) != 0;
	return ez_read_ns(walk->proc_fd, "thread-self/ns/pid", &walk->own_pid_ns);
}

static int check_root(struct ez_walk *walk, pid_t root)
{
	struct ez_status status;
	struct ez_stat st;
	char name[16];
	int dirfd, ret;

	snprintf(name, sizeof(name), "%d", root);
	dirfd = openat(walk->proc_fd, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	ret = ez_read_stat(dirfd, "stat", &walk->scratch, &st);
	if (!ret)
		ret = ez_read_status(dirfd, &walk->scratch, &status);
	close(dirfd);
	if (ret)
		return ret;
	return status.tgid != root || st.flags & PF_KTHREAD ? -EINVAL : 0;
}

/* Where the records of one process lie. */
struct range {
	struct ez_proc proc;
	size_t tasks_from, tasks_to; /* byte offsets */
	size_t fds_from, fds_to;
	size_t unreadable_from, unreadable_to;
};

struct rounds {
	struct ez_walk *walk;
	struct ez_buf procs;  /* struct ez_proc[]: the tree as the last search found it */
	struct ez_buf ranges; /* struct range[] */
	struct ez_map known;  /* pid -> index in ranges + 1 */
	size_t fresh;	      /* processes that the last search found first */
};

static struct range *range_of(const struct rounds *rounds, int32_t pid)
{
	const uint64_t *index = ez_map_get(&rounds->known, (uint64_t)pid);

	return index ? (struct range *)rounds->ranges.data + *index - 1 : NULL;
}

static int read_process(struct rounds *rounds, const struct ez_proc *proc)
{
	struct ez_scan *out = rounds->walk->out;
	struct range range = {.proc = *proc, .tasks_from = out->tasks.len, .fds_from = out->fds.len,
			      .unreadable_from = out->unreadable.len};
	int ret;

	ret = ez_process_read(rounds->walk, proc);
	if (ret)
		return ret;
	range.tasks_to = out->tasks.len;
	range.fds_to = out->fds.len;
	range.unreadable_to = out->unreadable.len;
	ret = ez_buf_append(&rounds->ranges, &range, sizeof(range));
	if (ret)
		return ret;
	return ez_map_put(&rounds->known, (uint64_t)proc->pid, ez_count(&rounds->ranges, sizeof(range)));
}

static int run_round(struct rounds *rounds, pid_t root)
{
	const struct ez_proc *proc;
	const struct range *range;
	size_t i;
	int ret;

	rounds->procs.len = 0;
	rounds->fresh = 0;
	ret = ez_tree_find(rounds->walk, root, &rounds->procs);
	for (i = 0; !ret && i < ez_count(&rounds->procs, sizeof(*proc)); i++) {
		proc = (const struct ez_proc *)rounds->procs.data + i;
		range = range_of(rounds, proc->pid);
		if (range && range->proc.starttime == proc->starttime)
			continue;
		/* The root comes first in every search: another one is not the tree that was asked for. */
		if (range && proc->pid == root)
			return -ESRCH;
		rounds->fresh++;
		ret = read_process(rounds, proc);
	}
	return ret;
}

/* Marks the tasks of a range as gone, and its other records as void: a 0 where a valid one has none. */
static void void_range(struct ez_scan *out, const struct range *range)
{
	struct ez_task *task;
	size_t at;

	for (at = range->tasks_from; at < range->tasks_to; at += sizeof(*task)) {
		task = (struct ez_task *)(out->tasks.data + at);
		task->flags = (task->flags | EZ_TASK_GONE) & ~EZ_TASK_SHARES_FILES;
		task->files_tid = 0;
	}
	for (at = range->fds_from; at < range->fds_to; at += sizeof(struct ez_fd))
		((struct ez_fd *)(out->fds.data + at))->tid = 0;
	for (at = range->unreadable_from; at < range->unreadable_to; at += sizeof(struct ez_unreadable))
		((struct ez_unreadable *)(out->unreadable.data + at))->what = 0;
}

static void drop_void(struct ez_scan *out)
{
	struct ez_fd *fds = (struct ez_fd *)out->fds.data;
	struct ez_unreadable *unreadable = (struct ez_unreadable *)out->unreadable.data;
	size_t i, kept = 0;

	for (i = 0; i < ez_count(&out->fds, sizeof(*fds)); i++) {
		if (fds[i].tid)
			fds[kept++] = fds[i];
	}
	out->fds.len = kept * sizeof(*fds);
	kept = 0;
	for (i = 0; i < ez_count(&out->unreadable, sizeof(*unreadable)); i++) {
		if (unreadable[i].what)
			unreadable[kept++] = unreadable[i];
	}
	out->unreadable.len = kept * sizeof(*unreadable);
}

/*
 * A process that the last search did not find again ended or left the tree. What was read of it says
 * nothing about the tree any more: a peer that it held is no longer an inside one.
 */
static int drop_lost(struct rounds *rounds)
{
	const struct ez_proc *procs = (const struct ez_proc *)rounds->procs.data;
	const struct range *ranges = (const struct range *)rounds->ranges.data;
	struct ez_map found = {0};
	const uint64_t *start;
	bool lost = false;
	size_t i;
	int ret = 0;

	for (i = 0; !ret && i < ez_count(&rounds->procs, sizeof(*procs)); i++)
		ret = ez_map_put(&found, (uint64_t)procs[i].pid, procs[i].starttime);
	for (i = 0; !ret && i < ez_count(&rounds->ranges, sizeof(*ranges)); i++) {
		start = ez_map_get(&found, (uint64_t)ranges[i].proc.pid);
		if (start && *start == ranges[i].proc.starttime)
			continue;
		void_range(rounds->walk->out, &ranges[i]);
		lost = true;
	}
	if (!ret && lost)
		drop_void(rounds->walk->out);
	ez_map_free(&found);
	return ret;
}

static int read_tree(struct ez_walk *walk, pid_t root)
{
	struct rounds rounds = {.walk = walk, .fresh = 1};
	int ret = 0, round;

	for (round = 0; !ret && rounds.fresh && round < MAX_ROUNDS; round++)
		ret = run_round(&rounds, root);
	if (!ret)
		ret = drop_lost(&rounds);
	if (!ret && rounds.fresh)
		ret = ez_unreadable_add(walk, root, -1, EZ_WHAT_CHILDREN, EAGAIN);
	ez_buf_free(&rounds.procs);
	ez_buf_free(&rounds.ranges);
	ez_map_free(&rounds.known);
	return ret;
}

int ez_scan_tree(pid_t root, struct ez_scan *out)
{
	struct ez_walk walk = {.out = out, .proc_fd = -1};
	int ret;

	if (root <= 0)
		return -ESRCH;
	ret = open_proc(&walk);
	if (!ret)
		ret = learn_devices(&walk);
	if (!ret)
		ret = check_root(&walk, root);
	if (!ret)
		ret = read_tree(&walk, root);
	if (!ret)
		ret = ez_socks_read(&walk);
	ez_map_free(&walk.mnt_done);
	ez_map_free(&walk.mnt_ids);
	ez_buf_free(&walk.scratch);
	if (walk.proc_fd >= 0)
		close(walk.proc_fd);
	return ret;
}

void ez_scan_free(struct ez_scan *scan)
{
	ez_buf_free(&scan->tasks);
	ez_buf_free(&scan->fds);
	ez_buf_free(&scan->socks);
	ez_buf_free(&scan->mounts);
	ez_buf_free(&scan->unreadable);
	ez_buf_free(&scan->blob);
}
