/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The small files that travel in the image directory. model/record.py is the other side; a unit test
 * compares sizes and offsets. All integers little endian, as are criu's images.
 *
 *   externalizer-policy.bin  written by the hook at pre-dump, read by the plugin at dump: what to refuse
 *   externalizer-seen.bin    appended by the plugin at dump: what it learned of each accepted socket
 *   externalizer-restore.bin written by the hook at post-dump, whole: what the plugin connects at restore
 *   externalizer-holding.bin written by the hook at post-dump, if sockets are kept: who holds which
 *   externalizer-inherit.bin written by the hook at post-dump, if descriptors lead outside: what is opened for them
 *
 * `externalize restore` may have the plugin read another version of the last three, from a directory that it
 * names in EZ_RECORDS_VARIABLE: the images themselves are never changed by a restore.
 *
 * They are trusted as far as criu's images are, no further: whoever can write the directory owns the
 * restored process anyway. All bounds are checked nevertheless, so that damage is a veto and no crash.
 */
#ifndef EXTERNALIZER_RECORD_H
#define EXTERNALIZER_RECORD_H

#include <stdint.h>

#define EZ_POLICY_FILE	"externalizer-policy.bin"
#define EZ_SEEN_FILE	"externalizer-seen.bin"
#define EZ_RESTORE_FILE "externalizer-restore.bin"
#define EZ_HOLDING_FILE "externalizer-holding.bin"
#define EZ_INHERIT_FILE "externalizer-inherit.bin"

#define EZ_RECORDS_VARIABLE "EXTERNALIZER_RECORDS"
#define EZ_RUN_VARIABLE	    "EXTERNALIZER_RUN_FILE" /* set where a command of ours has started criu */
#define EZ_WRITTEN	    "/run/externalizer/written"
#define EZ_PLAN_FILE	    "externalizer-plan.json"

#define EZ_POLICY_MAGIC	 0x4c505a45u /* "EZPL" */
#define EZ_SEEN_MAGIC	 0x4e535a45u /* "EZSN" */
#define EZ_RESTORE_MAGIC 0x53525a45u /* "EZRS" */
#define EZ_HOLDING_MAGIC 0x48485a45u /* "EZHH" */
#define EZ_INHERIT_MAGIC 0x4e495a45u /* "EZIN" */
#define EZ_FDS_MAGIC	 0x44465a45u /* "EZFD", of a message of the holder */
#define EZ_FILE_VERSION	 2u

#define EZ_MAX_NAME    108u   /* sun_path */
#define EZ_MAX_PATH    4096u  /* PATH_MAX */
#define EZ_MAX_GROUPS  65536u /* NGROUPS_MAX */
#define EZ_MAX_FILE    (64u << 20)
#define EZ_MAX_RECORDS 1000000u
#define EZ_MAX_WAIT_MS 86400000u
#define EZ_MAX_KEY     64u
#define EZ_MAX_PASSED  253u /* SCM_MAX_FD of the kernel, include/net/scm.h */

/* At the start of the policy and of the restore file. */
struct ez_file_head {
	uint32_t magic;
	uint32_t version;
	uint32_t count; /* entries that follow */
	uint32_t size;	/* of the whole file in bytes */
	uint32_t crc;	/* CRC-32 (IEEE) of the whole file with this field 0 */
	uint32_t criu_pid; /* policy only: the criu that the hook ran under, else the file is stale */
	uint64_t criu_starttime;
};

struct ez_policy_entry {
	uint32_t ino;
	uint32_t refuse; /* not 0: veto */
};

/* One per accepted socket, appended with one write. */
struct ez_seen {
	uint32_t magic;
	uint32_t ino;
	uint32_t type;
	uint32_t server_pid; /* SO_PEERCRED of our end */
	uint32_t server_uid;
	uint32_t server_gid;
	uint32_t peer_len; /* sun_path bytes of getpeername */
	uint32_t crc;	   /* of the record with this field 0 */
	uint8_t peer[EZ_MAX_NAME];
	uint32_t reserved;
};

/* ez_restore.flags */
#define EZ_REC_BIND	   0x01u /* bind to name before connecting */
#define EZ_REC_PERMS	   0x04u /* name_mode, name_uid, name_gid are valid */
#define EZ_REC_SERVER	   0x08u /* server_uid and server_gid are valid and are compared after the connect */
#define EZ_REC_FILE	   0x10u /* target_dev, target_ino, target_uid, target_gid are valid */
#define EZ_REC_HANGUP	   0x20u /* nobody listens there any more: hung up instead of a failed restore */
#define EZ_REC_MAPPED	   0x40u /* the user named this address for this restore: whoever is there is meant */

/* Followed by: target, name, groups (uint32_t each), padded with zeros to a multiple of 8. */
struct ez_restore {
	uint64_t target_dev; /* of the socket file, as stat(2) reports it in the client's mount namespace */
	uint64_t target_ino;
	uint32_t size; /* of this record with all that follows it */
	uint32_t ino;  /* of our end, at dump: criu's name for the socket */
	uint32_t type; /* SOCK_STREAM or SOCK_SEQPACKET */
	uint32_t flags;
	uint32_t uid; /* effective ids for the connect, as numbers in the task's user namespace */
	uint32_t gid;
	uint32_t server_uid; /* of who called listen(2), numbers in the task's user namespace */
	uint32_t server_gid;
	uint32_t target_uid; /* owner of the socket file */
	uint32_t target_gid;
	uint32_t name_mode;
	uint32_t name_uid;
	uint32_t name_gid;
	uint32_t target_len; /* path, or NUL and the abstract name */
	uint32_t name_len;
	uint32_t groups_len; /* number of groups */
	uint32_t wait_ms;    /* how long to wait for a listener that is not there, 0 = not at all */
	uint32_t reserved;
};

/* Follows the head of the holding file; texts end with a zero byte. */
struct ez_holding {
	char boot_id[40];
	char id[40];	 /* the holder's directory below EZ_KEPT_DIRECTORY, lower case hex */
	char digest[72]; /* of the plan that the sockets were kept by */
};

#define EZ_KEPT_DIRECTORY "/run/externalizer/kept"

/* Then `count` of these. */
struct ez_kept {
	uint32_t ino;
	uint32_t type;
	uint32_t flags; /* EZ_REC_HANGUP or 0 */
	uint32_t reserved;
};

/* ez_inherit.target: what is handed over. The first three are criu's own descriptors of these numbers. */
#define EZ_TARGET_STDIN	 0u
#define EZ_TARGET_STDOUT 1u
#define EZ_TARGET_STDERR 2u
#define EZ_TARGET_PATH	 3u
#define EZ_TARGET_HANGUP 4u /* a pipe of its own whose other end is closed */

/*
 * An open file description that the plugin opens in criu's own namespaces and hands over under `key`. Followed by:
 * key, path, data, padded with zeros to a multiple of 8. Flags: EZ_REC_MAPPED. The key is the name of what it is of,
 * `#`, and a number; records of one name follow each other.
 */
struct ez_inherit {
	uint64_t pos;	     /* where the program was in a regular file or a directory, bytes */
	uint32_t size;	     /* of this record with all that follows it */
	uint32_t flags;
	uint32_t target;
	uint32_t open_flags; /* as fcntl(2) F_GETFL told them at the dump */
	uint32_t mode;	     /* st_mode at the dump: another kind of file is refused, unless EZ_REC_MAPPED */
	uint32_t key_len;
	uint32_t path_len; /* 0 unless EZ_TARGET_PATH */
	uint32_t data_len; /* of a pipe's reading end: bytes that were unread, read first after EZ_TARGET_HANGUP */
};

/* A message of the holder; `count` descriptors come with it, each followed here by its inode at dump. */
struct ez_fds {
	uint32_t magic;
	uint32_t count;
	uint32_t ino[EZ_MAX_PASSED];
};

#endif
