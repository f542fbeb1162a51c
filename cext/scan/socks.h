/* SPDX-License-Identifier: GPL-2.0-only */
/* The search for the unix sockets of the tree: what sockmsg.c, socknet.c and socks.c share. */
#ifndef EXTERNALIZER_SCAN_SOCKS_H
#define EXTERNALIZER_SCAN_SOCKS_H

#include "scan.h"

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

struct parsed {
	struct ez_sock sock;
	const void *name;
	const uint32_t *icons;
};

static inline struct ez_sock *sock_at(const struct socks *socks, size_t index)
{
	return (struct ez_sock *)socks->walk->out->socks.data + index;
}

static inline size_t sock_count(const struct socks *socks)
{
	return ez_count(&socks->walk->out->socks, sizeof(struct ez_sock));
}

/* Takes a message apart; name and icons point into it. What it doesn't say is 0. */
void ez_sock_parse(const struct unix_diag_msg *msg, size_t len, uint64_t net_ns, struct parsed *out);
/* Lists a socket. */
int ez_sock_keep(struct socks *socks, struct parsed *parsed);
/* For ez_diag_dump: lists a socket that matters to the tree, or puts it aside. */
int ez_sock_message(void *socks, const struct unix_diag_msg *msg, size_t len);

/*
 * Dumps the namespace behind nsfd once, and once more where `again` is asked for; nsfd is not looked at where
 * the namespace is our own. What fails is recorded, of task `tid`.
 */
int ez_sock_visit(struct socks *socks, int nsfd, uint64_t net_ns, int32_t tid, bool again);
/* Dumps the namespaces that the tasks of the tree are in. */
int ez_sock_visit_tasks(struct socks *socks);

#endif
