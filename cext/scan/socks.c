// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which unix sockets matter to the tree, out of all that unix_diag knows.
 *
 * Kept are the sockets that the tree holds, their peers, the sockets that are connected to them, and the
 * listeners at which one of them waits to be accepted. A peer is as a rule kept because it is connected
 * back; a datagram socket may be the peer of one of ours and itself be connected to none, and may have come
 * earlier in the dump: those are put aside until all is known.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sockios.h>
#include <linux/unix_diag.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "socks.h"

#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C /* Linux 4.10 */
#endif

#define TCP_ESTABLISHED 1

/* ---- sockets that were not in the tables of the tree's namespaces ---- */

/* A duplicate of a held socket, proved to be that socket. */
static int duplicate(struct socks *socks, const struct held *held, int *fd_out)
{
	const uint64_t *index = ez_map_get(&socks->tasks, (uint64_t)held->tid);
	const struct ez_task *tasks = (const struct ez_task *)socks->walk->out->tasks.data;
	int pidfd, fd;
	struct stat st;

	/* A thread's own table can be reached through the thread's own pidfd only. */
	pidfd = index && tasks[*index - 1].tgid == held->tid ? ez_pidfd_open(held->tid, 0)
							      : ez_pidfd_open(held->tid, PIDFD_THREAD);
	if (pidfd < 0)
		return pidfd;
	fd = ez_pidfd_getfd(pidfd, held->fd);
	close(pidfd);
	if (fd < 0)
		return fd;
	if (fstat(fd, &st) || st.st_dev != socks->walk->out->sock_dev || st.st_ino != held->ino) {
		close(fd);
		return -ESTALE;
	}
	*fd_out = fd;
	return 0;
}

/* Dumps the namespace that the socket is in: once more if it was dumped, as it may be younger than that. */
static int visit_socket(struct socks *socks, struct held *held)
{
	int fd, nsfd, family, ret;
	socklen_t len = sizeof(family);
	struct stat st;

	ret = duplicate(socks, held, &fd);
	if (ret)
		return ez_fatal(ret) ? ret : 0;
	if (!getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &len))
		held->family = (uint32_t)family;
	nsfd = held->family == AF_UNIX ? ioctl(fd, SIOCGSKNS) : -1;
	ret = 0;
	if (nsfd >= 0 && !fstat(nsfd, &st))
		ret = ez_sock_visit(socks, nsfd, st.st_ino, held->tid, true);
	if (nsfd >= 0)
		close(nsfd);
	close(fd);
	return ret;
}

static int visit_missing(struct socks *socks)
{
	size_t i, count = ez_count(&socks->held, sizeof(struct held));
	struct held *held;
	int ret = 0;

	for (i = 0; !ret && i < count; i++) {
		held = (struct held *)socks->held.data + i;
		if (!ez_map_get(&socks->kept, held->ino))
			ret = visit_socket(socks, held);
	}
	return ret;
}

/* What is in no table is listed by its inode alone, unless it is known to be no unix socket. */
static int list_unknown(struct socks *socks)
{
	const struct held *held = (const struct held *)socks->held.data;
	size_t i, count = ez_count(&socks->held, sizeof(*held));
	struct ez_sock sock = {.flags = EZ_SOCK_IN_TREE | EZ_SOCK_NO_DIAG};
	int ret = 0;

	for (i = 0; !ret && i < count; i++) {
		if (ez_map_get(&socks->kept, held[i].ino) || (held[i].family && held[i].family != AF_UNIX))
			continue;
		sock.ino = (uint32_t)held[i].ino;
		ret = ez_buf_append(&socks->walk->out->socks, &sock, sizeof(sock));
	}
	return ret;
}

/* ---- the outside ends ---- */

/* Whether a socket of the tree has an outside end that is not listed yet. */
static bool lacks_other_end(const struct socks *socks, const struct ez_sock *sock)
{
	if (!(sock->flags & EZ_SOCK_IN_TREE))
		return false;
	if (sock->peer)
		return !ez_map_get(&socks->kept, sock->peer);
	return sock->state == TCP_ESTABLISHED && sock->type != SOCK_DGRAM && sock->shutdown != 3 &&
	       !ez_map_get(&socks->waiting, sock->ino);
}

static int take_spares(struct socks *socks, const struct ez_map *wanted)
{
	const unsigned char *at = socks->spares.data, *end = at + socks->spares.len;
	const struct unix_diag_msg *msg;
	const struct spare *spare;
	struct parsed parsed;
	int ret = 0;

	while (!ret && at < end) {
		spare = (const struct spare *)at;
		msg = (const struct unix_diag_msg *)(spare + 1);
		at += sizeof(*spare) + spare->len;
		if (!ez_map_get(wanted, msg->udiag_ino) || ez_map_get(&socks->kept, msg->udiag_ino))
			continue;
		/* The padding behind the message is zero and so no attribute. */
		ez_sock_parse(msg, spare->len, spare->net_ns, &parsed);
		ret = ez_sock_keep(socks, &parsed);
		if (!ret)
			ret = ez_map_put(&socks->kept, parsed.sock.ino, sock_count(socks));
	}
	return ret;
}

static int find_peers(struct socks *socks)
{
	struct ez_map wanted = {0};
	bool lacking = false;
	size_t i;
	int ret = 0;

	for (i = 0; !ret && i < sock_count(socks); i++) {
		if (!lacks_other_end(socks, sock_at(socks, i)))
			continue;
		lacking = true;
		if (sock_at(socks, i)->peer)
			ret = ez_map_put(&wanted, sock_at(socks, i)->peer, 1);
	}
	if (!ret && lacking)
		ret = take_spares(socks, &wanted);
	ez_map_free(&wanted);
	return ret;
}

/* A path leads across net namespaces: an outside end is often in ours where it isn't in the tree's. */
static int visit_own(struct socks *socks)
{
	size_t i, count = sock_count(socks);

	for (i = 0; i < count; i++) {
		if (lacks_other_end(socks, sock_at(socks, i)))
			return ez_sock_visit(socks, -1, socks->own_ns, 0, false);
	}
	return 0;
}

/* ---- */

static int collect_held(struct socks *socks)
{
	const struct ez_scan *out = socks->walk->out;
	const struct ez_fd *fd = (const struct ez_fd *)out->fds.data, *end = fd + ez_count(&out->fds, sizeof(*fd));
	const struct ez_task *tasks = (const struct ez_task *)out->tasks.data;
	size_t i;
	int ret = 0;

	for (; !ret && fd < end; fd++) {
		struct held held = {fd->ino, fd->tid, fd->fd, fd->family};

		if (!S_ISSOCK(fd->mode) || fd->dev != out->sock_dev || (fd->family && fd->family != AF_UNIX) ||
		    ez_map_get(&socks->inos, fd->ino))
			continue;
		ret = ez_buf_append(&socks->held, &held, sizeof(held));
		if (!ret)
			ret = ez_map_put(&socks->inos, fd->ino, ez_count(&socks->held, sizeof(held)));
	}
	for (i = 0; !ret && i < ez_count(&out->tasks, sizeof(*tasks)); i++)
		ret = ez_map_put(&socks->tasks, (uint64_t)tasks[i].tid, i + 1);
	return ret;
}

int ez_socks_read(struct ez_walk *walk)
{
	struct socks socks = {.walk = walk};
	int ret;

	ret = ez_read_ns(walk->proc_fd, "thread-self/ns/net", &socks.own_ns);
	if (!ret)
		ret = collect_held(&socks);
	if (!ret && socks.held.len)
		ret = ez_sock_visit_tasks(&socks);
	if (!ret)
		ret = visit_missing(&socks);
	if (!ret)
		ret = find_peers(&socks);
	if (!ret)
		ret = visit_own(&socks);
	if (!ret)
		ret = find_peers(&socks);
	if (!ret)
		ret = list_unknown(&socks);
	ez_buf_free(&socks.held);
	ez_buf_free(&socks.spares);
	ez_map_free(&socks.inos);
	ez_map_free(&socks.tasks);
	ez_map_free(&socks.done);
	ez_map_free(&socks.kept);
	ez_map_free(&socks.waiting);
	return ret;
}
