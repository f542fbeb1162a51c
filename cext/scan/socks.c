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
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/unix_diag.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "scan.h"

#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C /* Linux 4.10 */
#endif

#define MAX_ATTEMPTS  8
#define TCP_ESTABLISHED 1

struct held {
	uint64_t ino;
	int32_t tid;
	int32_t fd;
	uint32_t family; /* AF_UNIX, or 0 = not known */
};

struct spare {
	uint64_t net_ns;
	uint64_t len; /* of the unix_diag message that follows, padded to 8 */
};

struct socks {
	struct ez_walk *walk;
	struct ez_buf held;  /* struct held[], one for each inode */
	struct ez_map inos;  /* held inode -> its index + 1 */
	struct ez_map tasks; /* tid -> its index in out->tasks + 1 */
	struct ez_map done;  /* net namespaces dumped */
	struct ez_map kept;  /* inode -> index in out->socks + 1 */
	struct ez_map waiting; /* held inodes that are icons of a kept listener */
	struct ez_buf spares;
	uint64_t own_ns;
	uint64_t net_ns; /* of the dump at hand */
};

static struct ez_sock *sock_at(const struct socks *socks, size_t index)
{
	return (struct ez_sock *)socks->walk->out->socks.data + index;
}

static size_t sock_count(const struct socks *socks)
{
	return ez_count(&socks->walk->out->socks, sizeof(struct ez_sock));
}

static bool is_held(const struct socks *socks, uint32_t ino)
{
	return ez_map_get(&socks->inos, ino) != NULL;
}

/* ---- one message ---- */

struct parsed {
	struct ez_sock sock;
	const void *name;
	const uint32_t *icons;
};

static void parse_attribute(const struct nlattr *attr, const void *data, size_t len, struct parsed *out)
{
	struct ez_sock *sock = &out->sock;

	switch (attr->nla_type) {
	case UNIX_DIAG_NAME:
		out->name = data;
		/* The kernel counts a path's NUL, and nothing behind it; an abstract name is all its bytes. */
		sock->name_len = (uint32_t)(len && *(const char *)data ? strnlen(data, len) : len);
		break;
	case UNIX_DIAG_VFS:
		if (len < sizeof(struct unix_diag_vfs))
			break;
		sock->flags |= EZ_SOCK_HAS_VFS;
		sock->vfs_ino = ((const struct unix_diag_vfs *)data)->udiag_vfs_ino;
		sock->vfs_dev = ((const struct unix_diag_vfs *)data)->udiag_vfs_dev;
		break;
	case UNIX_DIAG_PEER:
		if (len < sizeof(uint32_t))
			break;
		sock->flags |= EZ_SOCK_HAS_PEER;
		sock->peer = *(const uint32_t *)data;
		break;
	case UNIX_DIAG_ICONS:
		out->icons = data;
		sock->icons_len = (uint32_t)(len / sizeof(uint32_t));
		break;
	case UNIX_DIAG_RQLEN:
		if (len < sizeof(struct unix_diag_rqlen))
			break;
		sock->rqueue = ((const struct unix_diag_rqlen *)data)->udiag_rqueue;
		sock->wqueue = ((const struct unix_diag_rqlen *)data)->udiag_wqueue;
		break;
	case UNIX_DIAG_SHUTDOWN:
		if (len >= 1)
			sock->shutdown = *(const uint8_t *)data;
		break;
	case UNIX_DIAG_UID:
		if (len < sizeof(uint32_t))
			break;
		sock->flags |= EZ_SOCK_HAS_UID;
		sock->uid = *(const uint32_t *)data;
		break;
	}
}

static void parse(const struct unix_diag_msg *msg, size_t len, uint64_t net_ns, struct parsed *out)
{
	const char *at = (const char *)(msg + 1), *end = (const char *)msg + len;
	const struct nlattr *attr;

	*out = (struct parsed){
		.sock = {
			.net_ns = net_ns,
			.ino = msg->udiag_ino,
			.type = msg->udiag_type,
			.state = msg->udiag_state,
		},
	};
	while ((size_t)(end - at) >= sizeof(*attr)) {
		attr = (const struct nlattr *)at;
		if (attr->nla_len < sizeof(*attr) || attr->nla_len > (size_t)(end - at))
			return;
		parse_attribute(attr, attr + 1, attr->nla_len - sizeof(*attr), out);
		if (NLA_ALIGN((size_t)attr->nla_len) > (size_t)(end - at))
			return;
		at += NLA_ALIGN((size_t)attr->nla_len);
	}
}

static int keep(struct socks *socks, struct parsed *parsed)
{
	struct ez_scan *out = socks->walk->out;
	struct ez_sock *sock = &parsed->sock;
	int ret;

	if (is_held(socks, sock->ino))
		sock->flags |= EZ_SOCK_IN_TREE;
	ret = ez_blob_add(&out->blob, parsed->name, sock->name_len, 1, &sock->name_off);
	if (!ret)
		ret = ez_blob_add(&out->blob, parsed->icons, sock->icons_len * sizeof(uint32_t), sizeof(uint32_t),
				  &sock->icons_off);
	return ret ? ret : ez_buf_append(&out->socks, sock, sizeof(*sock));
}

static bool has_held_icon(const struct socks *socks, const struct parsed *parsed)
{
	uint32_t i;

	for (i = 0; i < parsed->sock.icons_len; i++) {
		if (is_held(socks, parsed->icons[i]))
			return true;
	}
	return false;
}

static int put_aside(struct socks *socks, const struct unix_diag_msg *msg, size_t len)
{
	struct spare spare = {socks->net_ns, (len + 7) & ~(size_t)7};
	void *at;
	int ret = ez_buf_append(&socks->spares, &spare, sizeof(spare));

	if (!ret)
		ret = ez_buf_extend(&socks->spares, spare.len, &at);
	if (!ret)
		memcpy(at, msg, len);
	return ret;
}

static int handle_message(void *arg, const struct unix_diag_msg *msg, size_t len)
{
	struct socks *socks = arg;
	struct parsed parsed;

	parse(msg, len, socks->net_ns, &parsed);
	if (ez_map_get(&socks->kept, parsed.sock.ino))
		return 0;
	if (is_held(socks, parsed.sock.ino) || is_held(socks, parsed.sock.peer) || has_held_icon(socks, &parsed))
		return keep(socks, &parsed);
	return parsed.sock.type == SOCK_DGRAM ? put_aside(socks, msg, len) : 0;
}

/* ---- one namespace ---- */

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
		ret = ez_diag_dump(sock, handle_message, socks);
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

/* Dumps the namespace behind nsfd once; -1 = our own. Failures other than fatal ones are recorded. */
static int visit_namespace(struct socks *socks, int nsfd, uint64_t net_ns, int32_t tid, bool again)
{
	int ret;

	if (ez_map_get(&socks->done, net_ns) && !again)
		return 0;
	ret = dump_namespace(socks, net_ns == socks->own_ns ? -1 : nsfd, net_ns);
	if (ez_fatal(ret))
		return ret;
	if (ret && !ez_map_get(&socks->done, net_ns)) {
		ret = ez_unreadable_add(socks->walk, tid, -1, EZ_WHAT_NETNS_DIAG, -ret);
		if (ret)
			return ret;
	}
	return ez_map_put(&socks->done, net_ns, 1);
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

static int visit_tasks(struct socks *socks)
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
			ret = visit_namespace(socks, fd, tasks[i].net_ns, tasks[i].tid, false);
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
							      : ez_pidfd_open(held->tid, O_EXCL);
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
		ret = visit_namespace(socks, nsfd, st.st_ino, held->tid, true);
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
		parse(msg, spare->len, spare->net_ns, &parsed);
		ret = keep(socks, &parsed);
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
			return visit_namespace(socks, -1, socks->own_ns, 0, false);
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
		ret = visit_tasks(&socks);
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
