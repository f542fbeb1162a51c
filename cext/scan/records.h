/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The packed records that every scan engine fills and model/snapshot.py reads.
 *
 * Native byte order, natural alignment, no padding that is not named: the Python side reads them with
 * struct formats that a unit test compares with these sizes and offsets. Variable data (names, icons,
 * mountinfo strings) lies in one blob and is named by offset and length into it. Inode numbers of unix
 * sockets are 32 bit on the wire of unix_diag and in criu's images; fds report 64 bit.
 */
#ifndef EXTERNALIZER_SCAN_RECORDS_H
#define EXTERNALIZER_SCAN_RECORDS_H

#include <stdint.h>

#define EZ_RECORDS_SCHEMA 1

/* ez_task.flags */
#define EZ_TASK_LEADER	     0x01u /* tid == tgid */
#define EZ_TASK_SHARES_FILES 0x02u /* its fd table is listed under files_tid only */
#define EZ_TASK_ZOMBIE	     0x04u
#define EZ_TASK_STOPPED	     0x08u /* T or t in /proc/PID/stat */
#define EZ_TASK_GONE	     0x10u /* ended or left the tree during the scan: its fds are not listed, not even in part */

struct ez_task {
	uint64_t starttime; /* clock ticks since boot, field 22 of /proc/PID/stat; of the thread itself */
	uint64_t mnt_ns;    /* inode numbers of /proc/TID/ns/X, 0 = unreadable (then also an ez_unreadable) */
	uint64_t net_ns;
	uint64_t pid_ns;
	uint64_t user_ns;
	int32_t tgid; /* as seen in the scanner's pid namespace */
	int32_t tid;
	int32_t ppid;
	int32_t vpid; /* innermost number of the NStgid line */
	int32_t vtid; /* innermost number of the NSpid line */
	int32_t sid;  /* session, scanner's view; 0 = leader outside the pid namespace */
	uint32_t uid; /* effective */
	uint32_t gid;
	uint32_t flags;
	char comm[16];	   /* NUL padded */
	int32_t files_tid; /* the task of this process under which its fd table is listed: as a rule the leader;
			      another one where the leader has ended; itself with a table of its own; 0 = no table */
};

struct ez_fd {
	uint64_t dev; /* st_dev as stat(2) reports it */
	uint64_t ino;
	int32_t tid; /* the task in whose table it was found */
	int32_t fd;
	uint32_t mode;	 /* st_mode; S_IFMT tells the kind; 0 = could not be read without the risk of blocking */
	uint32_t family; /* AF_X of a socket; 0 = no socket, or could not be read */
};

/* ez_sock.flags */
#define EZ_SOCK_IN_TREE	 0x01u /* held by at least one fd of the tree */
#define EZ_SOCK_HAS_PEER 0x02u /* unix_diag sent UNIX_DIAG_PEER; peer may still be 0: not yet accepted */
#define EZ_SOCK_HAS_VFS	 0x04u /* bound to a path; vfs_dev and vfs_ino are valid */
#define EZ_SOCK_HAS_UID	 0x08u /* uid is valid (Linux 5.3) */
#define EZ_SOCK_NO_DIAG	 0x10u /* held by the tree but in no readable unix_diag table: only ino is valid */

/*
 * Listed: every unix socket that an fd of the tree holds; every socket that is the peer of one of those;
 * every socket whose peer is one of those; and every listener one of whose icons is one of those.
 */
struct ez_sock {
	uint64_t net_ns; /* inode of the net namespace in whose table it was found */
	uint32_t ino;
	uint32_t peer; /* inode of the peer, 0 = none or unknown */
	uint32_t flags;
	uint32_t type;	   /* SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET */
	uint32_t state;	   /* TCP_ESTABLISHED 1, TCP_CLOSE 7, TCP_LISTEN 10 */
	uint32_t shutdown; /* RCV_SHUTDOWN 1 | SEND_SHUTDOWN 2 */
	uint32_t rqueue;   /* as unix_diag: unread bytes; of a listener the number of waiting connections */
	uint32_t wqueue;   /* as unix_diag: memory of what the peer has not read yet; of a listener its backlog */
	uint32_t uid;	   /* owner of the socket's inode */
	uint32_t vfs_dev;  /* the kernel's own encoding: major << 20 | minor */
	uint32_t vfs_ino;
	uint32_t name_len; /* 0 = unnamed; an abstract name starts with NUL, a path has no NUL */
	uint32_t name_off;
	uint32_t icons_len; /* number of uint32_t inodes at icons_off: connections waiting for accept */
	uint32_t icons_off; /* aligned to 4 */
	uint32_t reserved;
};

/* Every string as in mountinfo, already decoded (\040 and so on undone); proc_pid_mountinfo(5). */
struct ez_mount {
	uint64_t mnt_ns; /* the namespace whose table this line is from */
	uint64_t dev;	 /* st_dev encoding, makedev(major, minor) */
	int32_t mnt_id;
	int32_t parent_id;
	int32_t shared; /* peer group, 0 = not shared */
	int32_t master; /* 0 = no master */
	int32_t propagate_from;
	uint32_t unbindable;
	uint32_t root_off, root_len;
	uint32_t mountpoint_off, mountpoint_len;
	uint32_t options_off, options_len;
	uint32_t fstype_off, fstype_len;
	uint32_t source_off, source_len;
	uint32_t super_off, super_len;
};

/* ez_unreadable.what */
enum ez_what {
	EZ_WHAT_TASK = 1,
	EZ_WHAT_FDS = 2,
	EZ_WHAT_FD = 3,
	EZ_WHAT_NS = 4,
	EZ_WHAT_NETNS_DIAG = 5,
	EZ_WHAT_MOUNTINFO = 6,
	EZ_WHAT_CHILDREN = 7,
};

/* What could not be read. UNKNOWN is never silently treated as safe. */
struct ez_unreadable {
	int32_t tid;
	int32_t fd; /* -1 where no fd is meant */
	uint32_t what;
	int32_t error; /* errno */
};

#endif
