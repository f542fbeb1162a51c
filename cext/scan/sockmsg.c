// SPDX-License-Identifier: GPL-2.0-only
/* One message of unix_diag: what it says, and whether its socket matters to the tree. */
#define _GNU_SOURCE
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <string.h>
#include <sys/socket.h>

#include "socks.h"

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

void ez_sock_parse(const struct unix_diag_msg *msg, size_t len, uint64_t net_ns, struct parsed *out)
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

static bool is_held(const struct socks *socks, uint32_t ino)
{
	return ez_map_get(&socks->inos, ino) != NULL;
}

int ez_sock_keep(struct socks *socks, struct parsed *parsed)
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

int ez_sock_message(void *arg, const struct unix_diag_msg *msg, size_t len)
{
	struct socks *socks = arg;
	struct parsed parsed;

	ez_sock_parse(msg, len, socks->net_ns, &parsed);
	if (ez_map_get(&socks->kept, parsed.sock.ino))
		return 0;
	if (is_held(socks, parsed.sock.ino) || is_held(socks, parsed.sock.peer) || has_held_icon(socks, &parsed))
		return ez_sock_keep(socks, &parsed);
	return parsed.sock.type == SOCK_DGRAM ? put_aside(socks, msg, len) : 0;
}
