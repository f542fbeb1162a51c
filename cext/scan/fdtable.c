// SPDX-License-Identifier: GPL-2.0-only
/*
 * The descriptors of one table.
 *
 * The fast way tries every number up to the table's size: pidfd_getfd(2) and statx(2) on the duplicate cost
 * 2 to 3 us together, less than listing and reading the links. Where pidfd_getfd is refused, for a thread
 * without a pidfd, and where file systems are around that may block, the links below /proc/PID/fd are read
 * and nothing is opened.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "scan.h"

/* A table that is larger than this and mostly empty is listed, not tried number by number. */
#define PROBE_ALWAYS 256

int ez_pidfd_open(pid_t pid, unsigned int flags)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, flags);

	return fd < 0 ? -errno : fd;
}

int ez_pidfd_getfd(int pidfd, int fd)
{
	int dup = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	return dup < 0 ? -errno : dup;
}

static int add_fd(struct ez_walk *walk, const struct ez_fd *fd)
{
	return ez_buf_append(&walk->out->fds, fd, sizeof(*fd));
}

static int add_duplicate(struct ez_walk *walk, const struct ez_table *table, int fd, int dup)
{
	struct ez_fd record = {.tid = table->tid, .fd = fd};
	socklen_t len = sizeof(int);
	struct statx st;
	int family;

	/* DONT_SYNC: a network file system answers from what it knows instead of asking its server. */
	if (statx(dup, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_MODE | STATX_INO, &st))
		return ez_unreadable_add(walk, table->tid, fd, EZ_WHAT_FD, errno);
	record.dev = makedev(st.stx_dev_major, st.stx_dev_minor);
	record.ino = st.stx_ino;
	record.mode = st.stx_mode;
	if (S_ISSOCK(record.mode) && record.dev == walk->out->sock_dev) {
		if (!getsockopt(dup, SOL_SOCKET, SO_DOMAIN, &family, &len))
			record.family = (uint32_t)family;
	}
	return add_fd(walk, &record);
}

/* -EPERM, -ENOSYS or -EACCES: not this way. -EBADF: no such descriptor. */
static int read_duplicate(struct ez_walk *walk, const struct ez_table *table, int fd)
{
	int dup = ez_pidfd_getfd(table->pidfd, fd), ret;

	if (dup < 0)
		return dup;
	ret = add_duplicate(walk, table, fd, dup);
	close(dup);
	return ret;
}

/* mnt_id and ino of an open file: proc_pid_fdinfo(5); ino since Linux 5.14. */
static int read_fdinfo(struct ez_walk *walk, const struct ez_table *table, int fd, uint64_t *mnt_id, uint64_t *ino)
{
	const char *text, *at;
	char name[32];
	int ret;

	snprintf(name, sizeof(name), "fdinfo/%d", fd);
	ret = ez_slurp_at(table->dirfd, name, false, &walk->scratch);
	if (ret)
		return ret;
	text = (const char *)walk->scratch.data;
	at = strstr(text, "mnt_id:\t");
	if (!at)
		return -ENODATA;
	*mnt_id = strtoull(at + 8, NULL, 10);
	at = strstr(text, "ino:\t");
	*ino = at ? strtoull(at + 5, NULL, 10) : 0;
	return 0;
}

/* Names that sockfs gives to sockets: sk_prot_creator->name. What isn't here stays unknown. */
static const struct {
	const char *name;
	uint32_t family;
} protocols[] = {
	{"UNIX", AF_UNIX},     {"UNIX-STREAM", AF_UNIX}, {"TCP", AF_INET},	 {"UDP", AF_INET},
	{"RAW", AF_INET},      {"PING", AF_INET},	 {"UDP-Lite", AF_INET},	 {"TCPv6", AF_INET6},
	{"UDPv6", AF_INET6},   {"RAWv6", AF_INET6},	 {"PINGv6", AF_INET6},	 {"UDPLITEv6", AF_INET6},
	{"NETLINK", AF_NETLINK}, {"PACKET", AF_PACKET},
};

/* The family by the name of the protocol, 0 = not known: sockfs_xattr_get in net/socket.c. */
static uint32_t family_by_xattr(const struct ez_table *table, int fd)
{
	char path[64], name[64];
	ssize_t len;
	size_t i;

	snprintf(path, sizeof(path), "/proc/self/fd/%d/fd/%d", table->dirfd, fd);
	len = getxattr(path, "system.sockprotoname", name, sizeof(name) - 1);
	if (len < 0)
		return 0;
	name[len] = '\0';
	for (i = 0; i < sizeof(protocols) / sizeof(protocols[0]); i++) {
		if (!strcmp(name, protocols[i].name))
			return protocols[i].family;
	}
	return 0;
}

/* "socket:[123]" and its like: names of the kernel's own, which no path can look like. */
static bool parse_anon(const char *link, const char *kind, uint64_t *ino)
{
	size_t len = strlen(kind);
	char *end;

	if (strncmp(link, kind, len))
		return false;
	*ino = strtoull(link + len, &end, 10);
	return end > link + len && !strcmp(end, "]");
}

static int stat_link(struct ez_walk *walk, const struct ez_table *table, const char *name, struct ez_fd *record)
{
	struct statx st;

	if (statx(table->dirfd, name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
		  STATX_TYPE | STATX_MODE | STATX_INO, &st)) {
		if (errno == ENOENT)
			return 0;
		return ez_unreadable_add(walk, table->tid, record->fd, EZ_WHAT_FD, errno);
	}
	record->dev = makedev(st.stx_dev_major, st.stx_dev_minor);
	record->ino = st.stx_ino;
	record->mode = st.stx_mode;
	return add_fd(walk, record);
}

/*
 * A file with a path, where some file system may block: only its mount's id tells whether it is safe to
 * touch. 1 = it is.
 */
static int add_carefully(struct ez_walk *walk, const struct ez_table *table, struct ez_fd *record)
{
	uint64_t mnt_id, ino;
	const uint64_t *known;
	int ret;

	ret = read_fdinfo(walk, table, record->fd, &mnt_id, &ino);
	if (ret == -ESRCH)
		return 0; /* closed meanwhile; a task that ended is noticed by the caller */
	if (ret)
		return ez_unreadable_add(walk, table->tid, record->fd, EZ_WHAT_FD, -ret);
	known = ez_map_get(&walk->mnt_ids, mnt_id + 1);
	if (known && *known & 1)
		return 1;
	if (!known || !ino)
		return ez_unreadable_add(walk, table->tid, record->fd, EZ_WHAT_FD, EWOULDBLOCK);
	record->dev = *known >> 1;
	record->ino = ino;
	return add_fd(walk, record);
}

/* What the link alone tells of a socket or pipe. False for other files. */
static bool parse_link(struct ez_walk *walk, const char *link, struct ez_fd *record)
{
	if (parse_anon(link, "socket:[", &record->ino)) {
		record->dev = walk->out->sock_dev;
		record->mode = S_IFSOCK | 0777;
		return true;
	}
	if (parse_anon(link, "pipe:[", &record->ino)) {
		record->dev = walk->pipe_dev;
		record->mode = S_IFIFO | 0600;
		return true;
	}
	return false;
}

static int add_by_link(struct ez_walk *walk, const struct ez_table *table, const char *name, const char *link,
		       struct ez_fd *record)
{
	int ret;

	if (link[0] == '/' && walk->careful) {
		ret = add_carefully(walk, table, record);
		if (ret != 1)
			return ret;
	}
	if (table->pidfd >= 0 && !walk->no_pidfd_getfd) {
		ret = read_duplicate(walk, table, record->fd);
		if (!ret || ret == -EBADF)
			return 0;
		if (ez_fatal(ret) || ret == -ESRCH)
			return ret;
	}
	if (!parse_link(walk, link, record))
		return stat_link(walk, table, name, record);
	if (S_ISSOCK(record->mode))
		record->family = family_by_xattr(table, record->fd);
	return add_fd(walk, record);
}

static int read_link(struct ez_walk *walk, const struct ez_table *table, int fd)
{
	struct ez_fd record = {.tid = table->tid, .fd = fd};
	char name[32], link[64];
	ssize_t len;

	snprintf(name, sizeof(name), "fd/%d", fd);
	len = readlinkat(table->dirfd, name, link, sizeof(link) - 1);
	if (len < 0) {
		if (errno == ENOENT || errno == ESRCH)
			return 0;
		/* The right to read links is one to the task, not to this descriptor. */
		if (errno == EACCES || errno == EPERM)
			return -errno;
		return ez_unreadable_add(walk, table->tid, fd, EZ_WHAT_FD, errno);
	}
	link[len] = '\0';
	return add_by_link(walk, table, name, link, &record);
}

static int collect_fd(void *arg, int32_t fd)
{
	return ez_buf_append(arg, &fd, sizeof(fd));
}

static int read_fast(struct ez_walk *walk, const struct ez_table *table, int fd)
{
	int ret = read_duplicate(walk, table, fd);

	if (ret == -EBADF)
		return 0;
	/* A security module keeps this one from us. */
	return ret == -EACCES ? read_link(walk, table, fd) : ret;
}

/* Reads the descriptors that /proc/PID/fd lists, each by `read`. */
static int read_listed(struct ez_walk *walk, const struct ez_table *table,
		       int (*read)(struct ez_walk *walk, const struct ez_table *table, int fd))
{
	struct ez_buf numbers = {0};
	size_t i, count;
	int ret;

	ret = ez_each_number(table->dirfd, "fd", collect_fd, &numbers);
	count = ez_count(&numbers, sizeof(int32_t));
	for (i = 0; !ret && i < count; i++)
		ret = read(walk, table, ((int32_t *)numbers.data)[i]);
	ez_buf_free(&numbers);
	return ret;
}

/* Whether trying each number beats listing: /proc/PID/fd tells the number of fds as its size (Linux 6.2). */
static bool worth_probing(const struct ez_table *table)
{
	struct stat st;

	if (table->fdsize <= PROBE_ALWAYS)
		return true;
	if (fstatat(table->dirfd, "fd", &st, 0))
		return false;
	return !st.st_size || (uint64_t)st.st_size * 4 >= table->fdsize;
}

static int probe(struct ez_walk *walk, const struct ez_table *table)
{
	uint32_t limit = table->fdsize, fd = 0;
	struct ez_status status;
	int ret = 0;

	for (;;) {
		for (; !ret && fd < limit; fd++)
			ret = read_fast(walk, table, (int)fd);
		/* The table may have grown while it was read. */
		if (!ret)
			ret = ez_read_status(table->dirfd, &walk->scratch, &status);
		if (ret || status.fdsize <= limit)
			return ret;
		limit = status.fdsize;
	}
}

int ez_fdtable_read(struct ez_walk *walk, const struct ez_table *table)
{
	size_t start = walk->out->fds.len;
	int ret = -ENOSYS;

	if (table->pidfd >= 0 && !walk->no_pidfd_getfd && !walk->careful) {
		ret = worth_probing(table) ? probe(walk, table) : read_listed(walk, table, read_fast);
		if (ret == -ENOSYS)
			walk->no_pidfd_getfd = true;
	}
	/* pidfd_getfd needs ptrace's right to attach, the links only that to read. */
	if (ret == -ENOSYS || ret == -EPERM) {
		walk->out->fds.len = start;
		ret = read_listed(walk, table, read_link);
	}
	if (!ret || ret == -ESRCH)
		return ret;
	return ez_unreadable_add(walk, table->tid, -1, EZ_WHAT_FDS, -ret);
}
