// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sockets that a holder process kept open since the dump: externalizer/holder is the other side.
 *
 * They are taken once, in criu itself before any fork, where the holder's path is visible and we are root of
 * the initial namespaces. criu's own --inherit-fd carries them into the restoring tasks: what is in its list
 * when plugins have been initialised goes into its fdstore, which exists only later in criu before 4.2
 * (cr_restore_tasks), and can be had from there in every task by its key.
 *
 * A criu that waits for the tree (no -d) keeps its fdstore open all the time. So not the socket itself goes there,
 * but an envelope: a datagram socket that has it queued. The task takes it out, and then nobody but the tree has
 * it: its peer sees when the program closes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "criu_abi.h"
#include "plugin.h"

#define HOLDER_DEADLINE_SECONDS 10 /* for each message of the holder */

static uint8_t *taken; /* for each entry of the file whether its descriptor has come */

static char *key_of(uint32_t ino, char *buf, size_t size)
{
	snprintf(buf, size, "externalizer-kept[%u]", ino);
	return buf;
}

static int check_boot(const struct ez_holding *holding)
{
	char boot[64] = "";
	ssize_t n;
	int fd;

	fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, boot, sizeof(boot) - 1);
	close(fd);
	if (n <= 0)
		return -EIO;
	boot[strcspn(boot, "\n")] = 0;
	if (!strcmp(boot, holding->boot_id))
		return 0;
	ez_log(EZ_LOG_ERROR, "sockets were kept on another host or before another boot: they are gone\n");
	return -ENOENT;
}

/* A connection to the holder on which `ask` was said, or -errno. */
static int holder_ask(const struct ez_holding *holding, const char *ask)
{
	const struct timeval tv = { .tv_sec = HOLDER_DEADLINE_SECONDS };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	ssize_t len = (ssize_t)strlen(ask);
	int sk, ret;

	snprintf(addr.sun_path, sizeof(addr.sun_path), EZ_KEPT_DIRECTORY "/%s/socket", holding->id);
	sk = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sk < 0)
		return -errno;
	if (!setsockopt(sk, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) &&
	    !setsockopt(sk, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) &&
	    !connect(sk, (void *)&addr, sizeof(addr)) && send(sk, ask, len, MSG_NOSIGNAL) == len)
		return sk;
	ret = errno == ECONNREFUSED ? -ENOENT : -errno;
	close(sk);
	return ret;
}

static int holder_connect(const struct ez_holding *holding)
{
	char ask[16 + sizeof(holding->digest)];
	int sk;

	snprintf(ask, sizeof(ask), "take %s", holding->digest);
	sk = holder_ask(holding, ask);
	if (sk < 0)
		ez_log(EZ_LOG_ERROR, "the holder %s of kept sockets can't be reached: %s\n", holding->id,
		       sk == -ENOENT ? "it has ended (`externalize kept` may tell why)" : strerror(-sk));
	return sk;
}

/* A message with one descriptor. 0 or -errno. */
static int send_one(int sk, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = "", byte = 0;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	return sendmsg(sk, &msg, MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

/* The descriptor in the message that is queued, or -errno. */
static int receive_one(int sk)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))), byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *cmsg;
	int fd;

	if (recvmsg(sk, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0)
		return errno == EAGAIN ? -ENOENT : -errno;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS)
		return -ENOENT;
	memcpy(&fd, CMSG_DATA(cmsg), sizeof(int));
	return fd;
}

/* An envelope with `fd` in it, or -errno. */
static int envelop(int fd)
{
	int pair[2], ret;

	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair))
		return -errno;
	ret = send_one(pair[0], fd);
	close(pair[0]);
	if (!ret)
		return pair[1];
	close(pair[1]);
	return ret;
}

/* What the holder says instead of giving anything. */
static void log_refusal(const uint8_t *text, ssize_t len)
{
	char shown[1024];

	if (len > 7 && !memcmp(text, "error: ", 7))
		ez_log(EZ_LOG_ERROR, "the holder of kept sockets: %s\n",
		       ez_printable(text + 7, (size_t)len - 7, shown, sizeof(shown)));
}

/* One message; returns how many descriptors came, or -errno with none left open. */
static int receive(int sk, struct ez_fds *message, int *fds)
{
	char control[CMSG_SPACE(EZ_MAX_PASSED * sizeof(int))] __attribute__((aligned(8)));
	struct iovec iov = { .iov_base = message, .iov_len = sizeof(*message) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *cmsg;
	int count = 0;
	ssize_t n;

	do
		n = recvmsg(sk, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
		count = (int)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(cmsg), count * sizeof(int));
	}
	if (n >= (ssize_t)(2 * sizeof(uint32_t)) && message->magic == EZ_FDS_MAGIC && count > 0 &&
	    message->count == (uint32_t)count && n == (ssize_t)((2 + count) * sizeof(uint32_t)) &&
	    !(msg.msg_flags & (MSG_CTRUNC | MSG_TRUNC)))
		return count;
	while (count > 0)
		close(fds[--count]);
	log_refusal((const uint8_t *)message, n);
	return n == 0 ? -ENOENT : -EPROTO;
}

static int store(const struct ez_file *holding, const struct ez_fds *message, const int *fds, int count)
{
	const struct ez_kept *first = (const void *)(ez_holding_of(holding) + 1);
	int stored = 0;

	for (int i = 0; i < count; i++) {
		const struct ez_kept *kept = ez_kept_find(holding, message->ino[i]);
		int envelope = kept && !taken[kept - first] ? envelop(fds[i]) : -1;
		char key[64];

		close(fds[i]);
		if (envelope < 0)
			continue;
		if (inherit_fd_add(envelope, key_of(kept->ino, key, sizeof(key)))) {
			close(envelope);
			continue;
		}
		taken[kept - first] = 1;
		stored++;
	}
	return stored;
}

static int receive_all(int sk, const struct ez_file *holding)
{
	struct ez_fds message;
	int fds[EZ_MAX_PASSED];

	for (uint32_t have = 0; have < holding->count;) {
		int count = receive(sk, &message, fds), stored;

		if (count < 0) {
			ez_log(EZ_LOG_ERROR, "the holder of kept sockets gave %u of %u: %s\n", have, holding->count,
			       count == -ENOENT ? "it refused the rest" : strerror(-count));
			return count == -ENOENT ? -EPROTO : count;
		}
		stored = store(holding, &message, fds, count);
		if (stored != count) {
			ez_log(EZ_LOG_ERROR, "the holder gave sockets that were not kept for these images\n");
			return -EPROTO;
		}
		have += stored;
	}
	return 0;
}

int ez_kept_take(const struct ez_file *holding)
{
	int sk, ret;

	if (!inherit_fd_add || !inherit_fd_lookup_id) {
		ez_log(EZ_LOG_ERROR, "this criu can't carry kept sockets into the tasks\n");
		return -ENOSYS;
	}
	ret = check_boot(ez_holding_of(holding));
	if (ret)
		return ret;
	taken = calloc(holding->count + 1, 1);
	if (!taken)
		return -ENOMEM;
	ez_raise_limit();
	sk = holder_connect(ez_holding_of(holding));
	if (sk < 0)
		return sk;
	ret = receive_all(sk, holding);
	close(sk);
	return ret;
}

int ez_kept_get(const struct ez_file *holding, const struct ez_kept *kept, int *fd_out)
{
	const struct ez_kept *first = (const void *)(ez_holding_of(holding) + 1);
	char key[64];
	int envelope, fd;

	if (!taken || !taken[kept - first])
		return -ENOENT;
	envelope = inherit_fd_lookup_id(key_of(kept->ino, key, sizeof(key)));
	fd = envelope < 0 ? envelope : receive_one(envelope);
	if (envelope >= 0)
		close(envelope);
	if (fd < 0) {
		ez_log(EZ_LOG_ERROR, "socket %u: criu does not give it back\n", kept->ino);
		return -EIO;
	}
	*fd_out = fd;
	return 0;
}

void ez_kept_done(const struct ez_file *holding)
{
	char answer[64];
	int sk;

	if (!taken)
		return;
	sk = holder_ask(ez_holding_of(holding), "resumed");
	if (sk < 0)
		return; /* our hook has told it */
	if (recv(sk, answer, sizeof(answer), 0) < 0)
		ez_log(EZ_LOG_WARN, "the holder of kept sockets does not answer: %s\n", strerror(errno));
	close(sk);
}

void ez_kept_free(void)
{
	free(taken);
	taken = NULL;
}
