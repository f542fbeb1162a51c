/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The native scan engine: facts about a running process tree, read without stopping it.
 *
 * Functions return 0 or -errno and take their out-parameters last. A fact that cannot be read becomes an
 * ez_unreadable record and the scan goes on; only what spoils the whole scan (no memory, no descriptors
 * left, root gone) is returned as an error.
 */
#ifndef EXTERNALIZER_SCAN_H
#define EXTERNALIZER_SCAN_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "records.h"

/* ---- buffer.c: growable bytes ---- */

struct ez_buf {
	unsigned char *data;
	size_t len;
	size_t cap;
};

/* Appends `n` zeroed bytes; *out points to them until the next call on this buffer. */
int ez_buf_extend(struct ez_buf *buf, size_t n, void **out);
int ez_buf_append(struct ez_buf *buf, const void *data, size_t n);
/* Appends at an offset that is a multiple of `align`; -EOVERFLOW where a 32 bit offset doesn't reach. */
int ez_blob_add(struct ez_buf *blob, const void *data, size_t n, size_t align, uint32_t *off);
/*
 * Replaces the content by what `fd` gives until its end, and adds a NUL that `len` doesn't count. A file of
 * one record, such as stat and status, ends where a read gives less than was asked for; one of many may not.
 */
int ez_buf_slurp(struct ez_buf *buf, int fd, bool one_record);
void ez_buf_free(struct ez_buf *buf);

/* ---- map.c: a hash table from non-zero numbers to numbers ---- */

struct ez_map_slot {
	uint64_t key; /* 0 = free */
	uint64_t value;
};

struct ez_map {
	struct ez_map_slot *slots;
	size_t size; /* 0 or a power of two */
	size_t used;
};

/* Sets key to value. -EINVAL for key 0. */
int ez_map_put(struct ez_map *map, uint64_t key, uint64_t value);
/* NULL where the key is not in the map. */
const uint64_t *ez_map_get(const struct ez_map *map, uint64_t key);
void ez_map_clear(struct ez_map *map);
void ez_map_free(struct ez_map *map);

/* ---- the scan ---- */

struct ez_scan {
	struct ez_buf tasks;	  /* struct ez_task[] */
	struct ez_buf fds;	  /* struct ez_fd[] */
	struct ez_buf socks;	  /* struct ez_sock[] */
	struct ez_buf mounts;	  /* struct ez_mount[] */
	struct ez_buf unreadable; /* struct ez_unreadable[] */
	struct ez_buf blob;
	uint64_t sock_dev; /* st_dev of every socket on this host */
};

/*
 * Scans the tree of `root`, a pid in the caller's pid namespace. -ESRCH: no such process, or it ended;
 * -EINVAL: a thread that leads no process, or a kernel thread.
 */
int ez_scan_tree(pid_t root, struct ez_scan *out);
void ez_scan_free(struct ez_scan *scan);

/* ---- what the parts of the scan share ---- */

struct ez_walk {
	struct ez_scan *out;
	struct ez_map mnt_done; /* mount namespaces whose table was read */
	struct ez_map mnt_ids;	/* mnt_id + 1 -> (st_dev << 1) | safe to touch */
	struct ez_buf scratch;	/* content of the /proc file at hand */
	int proc_fd;		/* /proc */
	uint64_t pipe_dev;
	uint64_t own_pid_ns;
	bool careful; /* file systems are around on which touching a file may block */
	bool no_pidfd_getfd; /* this kernel has none */
	bool no_pidfd_thread;
	bool own_mounts_known; /* ids of the mounts in our own namespace are in mnt_ids */
	bool no_children;      /* this kernel has no children files */
};

/* Spoils the whole scan: what goes missing by it is no property of the target. */
static inline bool ez_fatal(int ret)
{
	return ret == -ENOMEM || ret == -EMFILE || ret == -ENFILE || ret == -EOVERFLOW;
}

/* Records something that couldn't be read; `error` is a positive errno. A fatal one is returned instead. */
int ez_unreadable_add(struct ez_walk *walk, int32_t tid, int32_t fd, enum ez_what what, int error);
static inline size_t ez_count(const struct ez_buf *buf, size_t size)
{
	return buf->len / size;
}

/* ---- procfile.c: small files below /proc ---- */

struct ez_stat {
	char comm[16];
	char state;
	int32_t ppid;
	int32_t sid;
	uint32_t flags; /* PF_X of the kernel */
	uint32_t threads;
	uint64_t starttime;
};

struct ez_status {
	int32_t tgid;
	int32_t vpid;
	int32_t vtid;
	uint32_t uid;
	uint32_t gid;
	uint32_t fdsize;
};

/* `name` is relative to `dirfd`. A task that ended gives -ESRCH. */
int ez_slurp_at(int dirfd, const char *name, bool one_record, struct ez_buf *buf);
int ez_read_stat(int dirfd, const char *name, struct ez_buf *scratch, struct ez_stat *out);
int ez_read_status(int dirfd, struct ez_buf *scratch, struct ez_status *out);
/* Inode number of the namespace behind `name` ("ns/net"). */
int ez_read_ns(int dirfd, const char *name, uint64_t *out);
/* The directory of a thread; `dirfd` is that of its process. It names this task even if the id is taken again. */
int ez_open_task(int dirfd, int32_t tid, int *fd_out);
/* Calls `each` for every entry of `dirfd`/`name` that is a number; a value other than 0 ends it. */
int ez_each_number(int dirfd, const char *name, int (*each)(void *arg, int32_t number), void *arg);

/* ---- tree.c: which processes ---- */

struct ez_proc {
	int32_t pid;
	int32_t ppid;
	uint32_t threads;
	uint64_t starttime;
};

/* Appends the living tree of `root`, itself first. -ESRCH: no root. */
int ez_tree_find(struct ez_walk *walk, pid_t root, struct ez_buf *procs);

/* ---- process.c: the tasks of one process ---- */

/* Appends the tasks and fds of `proc`. One that ended or ends meanwhile is recorded as gone. */
int ez_process_read(struct ez_walk *walk, const struct ez_proc *proc);

/* ---- fdtable.c: the descriptors of one table ---- */

struct ez_table {
	int dirfd; /* /proc/TGID/task/TID */
	int pidfd; /* negative = none: links are read instead */
	int32_t tid;
	uint32_t fdsize;
};

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif

/* -ESRCH: the task ended. Other obstacles are recorded. */
int ez_fdtable_read(struct ez_walk *walk, const struct ez_table *table);
int ez_pidfd_open(pid_t pid, unsigned int flags);
int ez_pidfd_getfd(int pidfd, int fd);

/* ---- netns.c: work in other namespaces, in a thread of its own ---- */

/* A SOCK_DIAG netlink socket that belongs to the net namespace `nsfd`, or to our own for -1. */
int ez_diag_socket(int nsfd, int *fd_out);
/* Opens our mountinfo as seen from the root of the mount namespace `nsfd`. */
int ez_mountinfo_open_in(int nsfd, int proc_fd, int *fd_out);

/* ---- unixdiag.c, socks.c ---- */

/* One dump of a net namespace's unix sockets; `each` gets the messages, valid only during the call. */
struct unix_diag_msg;
int ez_diag_dump(int sock, int (*each)(void *arg, const struct unix_diag_msg *msg, size_t len), void *arg);
/* Fills out->socks for the sockets that the tree holds. */
int ez_socks_read(struct ez_walk *walk);

/* ---- mountinfo.c ---- */

/* Reads the whole table of the mount namespace `ns`, that of the task behind `dirfd`, unless it is read already. */
int ez_mounts_read(struct ez_walk *walk, int dirfd, int32_t tid, uint64_t ns);

#endif
