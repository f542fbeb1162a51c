// SPDX-License-Identifier: GPL-2.0-only
/* Dumps of unix sockets by sock_diag(7). A dump tells of one net namespace: that of the netlink socket. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "scan.h"

#ifndef UDIAG_SHOW_UID
#define UDIAG_SHOW_UID 0x00000040 /* Linux 5.3 */
#endif

/* The kernel fills at most 32 KiB at once, a little more for a listener with many connections. */
#define BUFFER_SIZE (256 * 1024)

static int send_request(int sock)
{
	struct {
		struct nlmsghdr head;
		struct unix_diag_req req;
	} request = {
		.head = {
			.nlmsg_len = sizeof(request),
			.nlmsg_type = SOCK_DIAG_BY_FAMILY,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
		},
		.req = {
			.sdiag_family = AF_UNIX,
			.udiag_states = UINT32_MAX,
			.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS |
				      UDIAG_SHOW_RQLEN | UDIAG_SHOW_UID,
		},
	};
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};

	while (sendto(sock, &request, sizeof(request), 0, (struct sockaddr *)&kernel, sizeof(kernel)) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static ssize_t receive(int sock, char *data)
{
	struct sockaddr_nl from;
	struct iovec part = {data, BUFFER_SIZE};
	struct msghdr msg = {.msg_name = &from, .msg_iov = &part, .msg_iovlen = 1};
	ssize_t n;

	for (;;) {
		msg.msg_namelen = sizeof(from);
		n = recvmsg(sock, &msg, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (msg.msg_flags & MSG_TRUNC)
			return -EMSGSIZE;
		/* Anyone may send to our netlink address; only port 0 is the kernel. */
		if (msg.msg_namelen >= sizeof(from) && from.nl_pid == 0)
			return n ? n : -EPIPE;
	}
}

static int error_of(const struct nlmsghdr *head)
{
	const struct nlmsgerr *error = NLMSG_DATA(head);

	if (head->nlmsg_len < NLMSG_LENGTH(sizeof(*error)) || !error->error)
		return -EBADMSG;
	return error->error;
}

/* 0 = more to come, 1 = done. `interrupted`: the table changed in a way that may have hidden sockets. */
static int handle(const char *data, size_t size, bool *interrupted,
		  int (*each)(void *arg, const struct unix_diag_msg *msg, size_t len), void *arg)
{
	const struct nlmsghdr *head = (const struct nlmsghdr *)data;
	const int32_t *done;
	int ret;

	for (; NLMSG_OK(head, size); head = NLMSG_NEXT(head, size)) {
		if (head->nlmsg_flags & NLM_F_DUMP_INTR)
			*interrupted = true;
		switch (head->nlmsg_type) {
		case NLMSG_DONE:
			done = NLMSG_DATA(head);
			if (head->nlmsg_len >= NLMSG_LENGTH(sizeof(*done)) && *done < 0)
				return *done;
			return 1;
		case NLMSG_ERROR:
			return error_of(head);
		case SOCK_DIAG_BY_FAMILY:
			if (head->nlmsg_len < NLMSG_LENGTH(sizeof(struct unix_diag_msg)))
				return -EBADMSG;
			ret = each(arg, NLMSG_DATA(head), head->nlmsg_len - NLMSG_HDRLEN);
			if (ret)
				return ret;
		}
	}
	return 0;
}

int ez_diag_dump(int sock, int (*each)(void *arg, const struct unix_diag_msg *msg, size_t len), void *arg)
{
	bool interrupted = false;
	char *data = malloc(BUFFER_SIZE);
	ssize_t n;
	int ret;

	if (!data)
		return -ENOMEM;
	ret = send_request(sock);
	while (!ret) {
		n = receive(sock, data);
		ret = n < 0 ? (int)n : handle(data, (size_t)n, &interrupted, each, arg);
	}
	free(data);
	if (ret < 0)
		return ret;
	return interrupted ? -EAGAIN : 0;
}
