// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which processes are descendants of a root.
 *
 * Two ways: the children files of every thread, about 6 us each, or one pass over /proc, about 12 us for
 * each process of the host. Neither is atomic: the caller repeats the search until nothing new appears.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scan.h"

#define CHILDREN_COST 6
#define PASS_COST     12

struct search {
	struct ez_walk *walk;
	struct ez_buf *procs;
	struct ez_buf list; /* thread ids of one process, or struct ez_proc of all processes */
	struct ez_map seen; /* pid -> index in procs + 1 */
	size_t threads;
	size_t host_procs;
};

static int read_proc(struct ez_walk *walk, int32_t pid, struct ez_proc *out)
{
	struct ez_stat st;
	char name[32];
	int ret;

	snprintf(name, sizeof(name), "%d/stat", pid);
	ret = ez_read_stat(walk->proc_fd, name, &walk->scratch, &st);
	if (ret)
		return ret;
	*out = (struct ez_proc){.pid = pid, .ppid = st.ppid, .threads = st.threads, .starttime = st.starttime};
	return 0;
}

/* The number of processes, which procfs reports as links of its root; only good for an estimate. */
static size_t count_host(struct ez_walk *walk)
{
	struct stat st;

	return fstat(walk->proc_fd, &st) ? SIZE_MAX / PASS_COST : (size_t)st.st_nlink;
}

/* Whether a process that /proc doesn't show is there nevertheless: its option hidepid may hide it from us. */
static bool is_hidden(int32_t pid)
{
	return !kill(pid, 0) || errno == EPERM;
}

static int add_child(struct search *search, int32_t parent, int32_t pid)
{
	struct ez_proc child;
	int ret;

	if (ez_map_get(&search->seen, (uint64_t)pid))
		return 0;
	ret = read_proc(search->walk, pid, &child);
	if (ret == -ESRCH && is_hidden(pid)) {
		/* Unless its number was just taken again. */
		ret = read_proc(search->walk, pid, &child);
		if (ret == -ESRCH)
			ret = is_hidden(pid) ? -EACCES : ret;
	}
	if (ret == -ESRCH)
		return 0;
	if (ret)
		return ez_unreadable_add(search->walk, pid, -1, EZ_WHAT_TASK, -ret);
	if (child.ppid != parent) /* another process by now, or given to another parent */
		return 0;
	ret = ez_buf_append(search->procs, &child, sizeof(child));
	if (ret)
		return ret;
	return ez_map_put(&search->seen, (uint64_t)pid, ez_count(search->procs, sizeof(child)));
}

static int collect_number(void *arg, int32_t number)
{
	return ez_buf_append(arg, &number, sizeof(number));
}

static int children_of_thread(struct search *search, int32_t pid, int32_t tid)
{
	struct ez_buf list = {0};
	char path[64], *at, *end;
	int ret;

	snprintf(path, sizeof(path), "%d/task/%d/children", pid, tid);
	ret = ez_slurp_at(search->walk->proc_fd, path, false, &list);
	for (at = (char *)list.data; !ret && at; at = end) {
		long child = strtol(at, &end, 10);

		if (end == at)
			break;
		ret = add_child(search, pid, (int32_t)child);
	}
	ez_buf_free(&list);
	return ret;
}

static int list_threads(struct search *search, const struct ez_proc *proc)
{
	char path[32];

	search->list.len = 0;
	/* A single thread is the leader; one that is made just now is met by the next search. */
	if (proc->threads == 1)
		return collect_number(&search->list, proc->pid);
	snprintf(path, sizeof(path), "%d/task", proc->pid);
	return ez_each_number(search->walk->proc_fd, path, collect_number, &search->list);
}

static int children_of(struct search *search, size_t index)
{
	const struct ez_proc proc = ((struct ez_proc *)search->procs->data)[index];
	int32_t pid = proc.pid;
	size_t i;
	int ret;

	ret = list_threads(search, &proc);
	if (ret == -ESRCH)
		return 0;
	if (ret)
		return ez_unreadable_add(search->walk, pid, -1, EZ_WHAT_CHILDREN, -ret);
	search->threads += ez_count(&search->list, sizeof(int32_t));
	if (search->threads * CHILDREN_COST > search->host_procs * PASS_COST)
		return -E2BIG;
	for (i = 0; i < ez_count(&search->list, sizeof(int32_t)); i++) {
		ret = children_of_thread(search, pid, ((int32_t *)search->list.data)[i]);
		if (ret == -ESRCH) /* the thread ended */
			continue;
		if (ez_fatal(ret))
			return ret;
		if (ret)
			ret = ez_unreadable_add(search->walk, pid, -1, EZ_WHAT_CHILDREN, -ret);
		if (ret)
			return ret;
	}
	return 0;
}

static int by_children(struct search *search, const struct ez_proc *root)
{
	size_t i;
	int ret;

	ret = ez_buf_append(search->procs, root, sizeof(*root));
	if (!ret)
		ret = ez_map_put(&search->seen, (uint64_t)root->pid, 1);
	/* procs grows while it is walked, and may move. */
	for (i = 0; !ret && i < ez_count(search->procs, sizeof(*root)); i++)
		ret = children_of(search, i);
	return ret;
}

static int collect_proc(void *arg, int32_t pid)
{
	struct search *search = arg;
	struct ez_proc proc;
	int ret = read_proc(search->walk, pid, &proc);

	if (ez_fatal(ret))
		return ret;
	if (ret) /* ended meanwhile; stat is readable by everyone */
		return 0;
	ret = ez_buf_append(&search->list, &proc, sizeof(proc));
	if (ret)
		return ret;
	return ez_map_put(&search->seen, (uint64_t)pid, ez_count(&search->list, sizeof(proc)));
}

enum { UNSEEN = 0, INSIDE, OUTSIDE };

/* Follows the parents of `index` to one whose place is known, and gives the whole path that place. */
static void place(const struct search *search, unsigned char *places, size_t index)
{
	const struct ez_proc *all = (const struct ez_proc *)search->list.data;
	size_t at = index, steps = 0, count = ez_count(&search->list, sizeof(*all));
	unsigned char found = OUTSIDE;
	const uint64_t *parent;

	/* A parent that ended between two reads can make the chain wrong, even a ring: hence the bound. */
	while (steps++ <= count) {
		if (places[at]) {
			found = places[at];
			break;
		}
		parent = ez_map_get(&search->seen, (uint64_t)(uint32_t)all[at].ppid);
		if (!parent)
			break;
		at = *parent - 1;
	}
	for (at = index; steps-- > 0 && !places[at];) {
		places[at] = found;
		parent = ez_map_get(&search->seen, (uint64_t)(uint32_t)all[at].ppid);
		if (!parent)
			break;
		at = *parent - 1;
	}
}

static int emit(struct search *search, const unsigned char *places, size_t root)
{
	const struct ez_proc *all = (const struct ez_proc *)search->list.data;
	size_t i, count = ez_count(&search->list, sizeof(*all));
	int ret = ez_buf_append(search->procs, &all[root], sizeof(*all));

	for (i = 0; !ret && i < count; i++) {
		if (places[i] == INSIDE && i != root)
			ret = ez_buf_append(search->procs, &all[i], sizeof(*all));
	}
	return ret;
}

static int by_pass(struct search *search, const struct ez_proc *root)
{
	const uint64_t *index;
	unsigned char *places;
	size_t i, count;
	int ret;

	ez_map_clear(&search->seen);
	search->procs->len = 0;
	search->list.len = 0;
	ret = ez_each_number(search->walk->proc_fd, ".", collect_proc, search);
	if (ret)
		return ret;
	index = ez_map_get(&search->seen, (uint64_t)root->pid);
	if (!index)
		return -ESRCH;
	count = ez_count(&search->list, sizeof(*root));
	places = calloc(count, 1);
	if (!places)
		return -ENOMEM;
	places[*index - 1] = INSIDE;
	for (i = 0; i < count; i++)
		place(search, places, i);
	ret = emit(search, places, *index - 1);
	free(places);
	return ret;
}

int ez_tree_find(struct ez_walk *walk, pid_t root, struct ez_buf *procs)
{
	struct search search = {.walk = walk, .procs = procs, .host_procs = count_host(walk)};
	struct ez_proc first;
	int ret = read_proc(walk, root, &first);

	if (ret)
		return ret;
	ret = -E2BIG;
	if (!walk->no_children)
		ret = by_children(&search, &first);
	if (ret == -E2BIG)
		ret = by_pass(&search, &first);
	ez_map_free(&search.seen);
	ez_buf_free(&search.list);
	return ret;
}
