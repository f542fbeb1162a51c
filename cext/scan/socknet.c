// SPDX-License-Identifier: GPL-2.0-only
/* Dumps of the net namespaces in which sockets of the tree may be. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "socks.h"

#define MAX_ATTEMPTS 8

enum { VISITED = 1, VISITED_AGAIN };

/* Enters what a finished dump added into the tables. */
static int settle(struct socks *socks, size_t from)
{
	const unsigned char *blob = socks->walk->out->blob.data;
	const struct ez_sock *sock;
	uint32_t i, icon;
	size_t at;
	int ret = 0;

	for (at = from; !ret && at < sock_count(socks); at++) {
		sock = sock_at(socks, at);
		ret = ez_map_put(&socks->kept, sock->ino, at + 1);
		for (i = 0; !ret && i < sock->icons_len; i++) {
			memcpy(&icon, blob + sock->icons_off + i * sizeof(icon), sizeof(icon));
			if (icon)
				ret = ez_map_put(&socks->waiting, icon, at + 1);
		}
	}
	return ret;
}

static int dump_namespace(struct socks *socks, int nsfd, uint64_t net_ns)
{
	struct ez_scan *out = socks->walk->out;
	size_t socks_len = out->socks.len, blob_len = out->blob.len, spares_len = socks->spares.len;
	int attempt, ret = -EAGAIN, sock;

	socks->net_ns = net_ns;
	for (attempt = 0; ret == -EAGAIN && attempt < MAX_ATTEMPTS; attempt++) {
		out->socks.len = socks_len;
		out->blob.len = blob_len;
		socks->spares.len = spares_len;
		ret = ez_diag_socket(nsfd, &sock);
		if (ret)
			break;
		ret = ez_diag_dump(sock, ez_sock_message, socks);
		close(sock);
	}
	if (ret) {
		out->socks.len = socks_len;
		out->blob.len = blob_len;
		socks->spares.len = spares_len;
		return ret;
	}
	return settle(socks, socks_len / sizeof(struct ez_sock));
}

int ez_sock_visit(struct socks *socks, int nsfd, uint64_t net_ns, int32_t tid, bool again)
{
	const uint64_t *visits = ez_map_get(&socks->done, net_ns);
	int ret;

	if (visits && (!again || *visits == VISITED_AGAIN))
		return 0;
	ret = ez_map_put(&socks->done, net_ns, again ? VISITED_AGAIN : VISITED);
	if (!ret)
		ret = dump_namespace(socks, net_ns == socks->own_ns ? -1 : nsfd, net_ns);
	return ret ? ez_unreadable_add(socks->walk, tid, -1, EZ_WHAT_NETNS_DIAG, -ret) : 0;
}

static int open_ns_of(struct socks *socks, const struct ez_task *task, int *fd_out)
{
	struct stat st;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "%d/task/%d/ns/net", task->tgid, task->tid);
	fd = openat(socks->walk->proc_fd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	/* The task may have ended and its id been taken, or it changed its namespace. */
	if (fstat(fd, &st) || st.st_ino != task->net_ns) {
		close(fd);
		return -ESRCH;
	}
	*fd_out = fd;
	return 0;
}

int ez_sock_visit_tasks(struct socks *socks)
{
	const struct ez_task *tasks = (const struct ez_task *)socks->walk->out->tasks.data;
	size_t i, count = ez_count(&socks->walk->out->tasks, sizeof(*tasks));
	int ret, fd;

	for (i = 0; i < count; i++) {
		if (!tasks[i].net_ns || ez_map_get(&socks->done, tasks[i].net_ns))
			continue;
		fd = -1;
		ret = 0;
		if (tasks[i].net_ns != socks->own_ns)
			ret = open_ns_of(socks, &tasks[i], &fd);
		if (!ret)
			ret = ez_sock_visit(socks, fd, tasks[i].net_ns, tasks[i].tid, false);
		else if (ret == -ENOENT || ret == -ESRCH)
			ret = 0;
		else if (!ez_fatal(ret))
			ret = ez_unreadable_add(socks->walk, tasks[i].tid, -1, EZ_WHAT_NETNS_DIAG, -ret);
		if (fd >= 0)
			close(fd);
		if (ret)
			return ret;
	}
	return 0;
}
