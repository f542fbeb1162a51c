// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes one socket again, in the task that owns it: bound to its own name, connected to its server with
 * the credentials that the server recorded at the first connect.
 *
 * Runs in the restoring task: pid and mount namespace are final, ids are still 0 (of the task's user
 * namespace), there is one thread. criu sets flags, options and shutdown afterwards.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sockios.h>
#include <linux/un.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "criu_abi.h"
#include "ids.h"
#include "plugin.h"

/*
 * A stream connect(2) waits for ever while the listener's backlog is full (unix(7)). All sockets of all tasks
 * together get this long, longer only where the policy waits for a listener; criu's own --timeout does not
 * bound a plugin.
 */
#define CONNECT_DEADLINE_MS 10000
#define RETRY_MS	    50 /* between looks for a listener that is waited for */

static long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ll + ts.tv_nsec / 1000000;
}

/* When the first task began to connect. Shared by all tasks, which criu forks before they open files. */
static _Atomic long long own_start;
static _Atomic long long *start = &own_start;
static long long allowed = CONNECT_DEADLINE_MS; /* for all: one that is waited for must not cost another its time */

void ez_reconnect_init(const struct ez_file *records)
{
	void *page = mmap(NULL, sizeof(*start), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (page != MAP_FAILED)
		start = page; /* else each task has a deadline of its own */
	for (uint32_t i = 0; i < records->count; i++) {
		const struct ez_restore *rec = (const void *)(records->data + records->index[i].offset);

		if (rec->wait_ms + CONNECT_DEADLINE_MS > allowed)
			allowed = rec->wait_ms + CONNECT_DEADLINE_MS;
	}
}

/* Of `span` milliseconds since the first connect. */
static long long remaining_ms(long long span)
{
	long long none = 0;

	atomic_compare_exchange_strong(start, &none, now_ms());
	return atomic_load(start) + span - now_ms();
}

static int connect_bounded(int fd, const struct sockaddr_un *addr, socklen_t len)
{
	long long left = remaining_ms(allowed);
	struct timeval tv = { .tv_sec = left / 1000, .tv_usec = left % 1000 * 1000 };
	const struct timeval forever = { 0 };

	if (left <= 0)
		return -ETIMEDOUT;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)))
		return -errno;
	/* EINTR: a signal to criu; the connect has not happened, unix sockets have no connect in progress. */
	while (connect(fd, (const void *)addr, len)) {
		if (errno == EINTR && remaining_ms(allowed) > 0)
			continue;
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	}
	return setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &forever, sizeof(forever)) ? -errno : 0;
}

/* Others can't put another socket at this place: the directory is not theirs to write, or is sticky. */
static int directory_is_safe(const char *path)
{
	char dir[EZ_MAX_PATH];
	struct stat st;
	char *slash;

	snprintf(dir, sizeof(dir), "%s", path);
	slash = strrchr(dir, '/');
	slash[slash == dir] = 0;
	if (stat(dir, &st))
		return -errno;
	return !(st.st_mode & 022) || st.st_mode & S_ISVTX ? 0 : -EPERM;
}

/*
 * Opens the socket file without following a link and without connecting, and says whether it is the
 * recorded one, or one that the same owner has bound again at a place that others can't write to. The
 * owner is compared in any case: file systems give the inode number of an unlinked file to the next one.
 */
static int open_target(const struct ez_restore *rec, const char *path)
{
	struct stat st;
	int fd, ret;

	fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st)) {
		ret = -errno;
	} else if (!S_ISSOCK(st.st_mode)) {
		ret = -ENOTSOCK;
	} else if (rec->flags & EZ_REC_MAPPED) {
		return fd;
	} else if (!(rec->flags & EZ_REC_FILE)) {
		ret = -EPERM;
	} else if (st.st_uid != rec->target_uid || st.st_gid != rec->target_gid) {
		ez_log(EZ_LOG_ERROR, "the socket there belongs to uid %u gid %u, it was uid %u gid %u\n",
		       st.st_uid, st.st_gid, rec->target_uid, rec->target_gid);
		ret = -EPERM;
	} else if (st.st_dev == rec->target_dev && st.st_ino == rec->target_ino) {
		return fd;
	} else if (!(rec->flags & EZ_REC_SERVER)) {
		ret = -EPERM;
	} else {
		ret = directory_is_safe(path);
		if (!ret)
			return fd;
		ez_log(EZ_LOG_ERROR, "the socket there is a new one and others can write to its directory\n");
	}
	close(fd);
	return ret;
}

static int connect_path(int sk, const struct ez_restore *rec)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	char path[EZ_MAX_PATH];
	int fd, ret;

	memcpy(path, ez_restore_target(rec), rec->target_len);
	path[rec->target_len] = 0;
	fd = open_target(rec, path);
	if (fd < 0)
		return fd;
	/* By descriptor: what was checked is what is connected to, and the path may be longer than sun_path. */
	snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d", fd);
	ret = connect_bounded(sk, &addr, sizeof(addr));
	if (ret == -ENOENT && rec->target_len < sizeof(addr.sun_path)) {
		/* No /proc in this mount namespace. The server's credentials are compared below. */
		memcpy(addr.sun_path, path, rec->target_len + 1);
		ret = rec->flags & EZ_REC_SERVER ? connect_bounded(sk, &addr, sizeof(addr)) : -EPERM;
	}
	close(fd);
	return ret;
}

static int connect_abstract(int sk, const struct ez_restore *rec)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	memcpy(addr.sun_path, ez_restore_target(rec), rec->target_len);
	return connect_bounded(sk, &addr, offsetof(struct sockaddr_un, sun_path) + rec->target_len);
}

static int check_server(int sk, const struct ez_restore *rec)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (!(rec->flags & EZ_REC_SERVER))
		return 0;
	if (getsockopt(sk, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return -errno;
	if (cred.uid == rec->server_uid && cred.gid == rec->server_gid)
		return 0;
	ez_log(EZ_LOG_ERROR, "the server is uid %u gid %u, it was uid %u gid %u\n", cred.uid, cred.gid,
	       rec->server_uid, rec->server_gid);
	return -EPERM;
}

static int connect_as_recorded(int sk, const struct ez_restore *rec)
{
	struct ez_ids old = { 0 };
	int ret, reverted;

	ret = ez_ids_get(&old);
	if (ret)
		goto out;
	ret = ez_ids_switch(&old, rec);
	if (!ret)
		ret = ez_restore_target(rec)[0] ? connect_path(sk, rec) : connect_abstract(sk, rec);
	/* A failed way back is fatal too: the task would be restored with other rights than it had. */
	reverted = ez_ids_revert(&old);
	if (reverted) {
		ez_log(EZ_LOG_ERROR, "can't get back to the task's credentials: %s\n", strerror(-reverted));
		ret = reverted;
	}
	if (!ret)
		ret = check_server(sk, rec);
out:
	free(old.groups);
	return ret;
}

/*
 * By descriptor, not by path: the directory may be the task's own, and a link put there meanwhile must not
 * give a file of root's away.
 */
static int set_owner(int sk, const struct ez_restore *rec)
{
	int fd = ioctl(sk, SIOCUNIXFILE), ret = 0; /* an O_PATH descriptor of what was bound; Linux 4.12 */
	char path[64];

	if (fd < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fchownat(fd, "", rec->name_uid, rec->name_gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) ||
	    chmod(path, rec->name_mode & 07777))
		ret = -errno;
	close(fd);
	return ret;
}

/* criu unlinks the file of a bound socket before this and restores no mode or owner for it. */
static int bind_name(int sk, const struct ez_restore *rec)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	memcpy(addr.sun_path, ez_restore_name(rec), rec->name_len);
	if (bind(sk, (void *)&addr, offsetof(struct sockaddr_un, sun_path) + rec->name_len))
		return -errno;
	return addr.sun_path[0] && rec->flags & EZ_REC_PERMS ? set_owner(sk, rec) : 0;
}

int ez_hung_up(uint32_t type, int *fd_out)
{
	int pair[2];

	if (type == SOCK_DGRAM) { /* half of a pair would look connected for ever */
		*fd_out = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		return *fd_out < 0 ? -errno : 0;
	}
	if (type != SOCK_STREAM && type != SOCK_SEQPACKET)
		return -EBADMSG;
	if (socketpair(AF_UNIX, (int)type | SOCK_CLOEXEC, 0, pair))
		return -errno;
	close(pair[1]);
	*fd_out = pair[0];
	return 0;
}

static int nobody_listens(int ret)
{
	return ret == -ENOENT || ret == -ECONNREFUSED;
}

/* As the policy says for a listener that is not there: wait for it, so long as its time lasts. */
static int connect_or_wait(int sk, const struct ez_restore *rec)
{
	const struct timespec pause = { .tv_nsec = RETRY_MS * 1000000l };
	char text[4 * EZ_MAX_NAME + 8];
	int ret, said = 0;

	for (;;) {
		ret = connect_as_recorded(sk, rec);
		if (!nobody_listens(ret) || remaining_ms(rec->wait_ms) <= 0)
			return ret;
		if (!said++)
			ez_log(EZ_LOG_WARN, "socket %u: nobody listens at %s yet, waiting\n", rec->ino,
			       ez_printable(ez_restore_target(rec), rec->target_len, text, sizeof(text)));
		nanosleep(&pause, NULL);
	}
}

int ez_reconnect(const struct ez_restore *rec, int *fd_out)
{
	char text[4 * EZ_MAX_NAME + 8];
	int sk, ret = 0;

	if (rec->type != SOCK_STREAM && rec->type != SOCK_SEQPACKET)
		return -EBADMSG;
	sk = socket(AF_UNIX, (int)rec->type | SOCK_CLOEXEC, 0);
	if (sk < 0)
		return -errno;
	if (rec->flags & EZ_REC_BIND) {
		ret = bind_name(sk, rec);
		if (ret)
			ez_log(EZ_LOG_ERROR, "socket %u: can't bind to its own name %s: %s\n", rec->ino,
			       ez_printable(ez_restore_name(rec), rec->name_len, text, sizeof(text)),
			       strerror(-ret));
	}
	if (!ret) {
		ret = connect_or_wait(sk, rec);
		if (nobody_listens(ret) && rec->flags & EZ_REC_HANGUP) {
			ez_log(EZ_LOG_WARN, "socket %u: nobody listens at %s any more, it is hung up\n", rec->ino,
			       ez_printable(ez_restore_target(rec), rec->target_len, text, sizeof(text)));
			close(sk);
			return ez_hung_up(rec->type, fd_out);
		}
		if (ret)
			ez_log(EZ_LOG_ERROR, "socket %u: can't reconnect to %s as uid %u gid %u: %s\n", rec->ino,
			       ez_printable(ez_restore_target(rec), rec->target_len, text, sizeof(text)),
			       rec->uid, rec->gid, strerror(-ret));
	}
	if (ret) {
		close(sk);
		return ret;
	}
	*fd_out = sk;
	return 0;
}
