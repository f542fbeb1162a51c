/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef EXTERNALIZER_PLUGIN_H
#define EXTERNALIZER_PLUGIN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "record.h"

/* Logs through criu's own log; `level` is one of EZ_LOG_X. */
void ez_log(unsigned int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

struct ez_place {
	uint32_t ino;
	uint32_t offset;
};

/* A whole file of fixed entries or of restore records, validated; entries point into `data`. */
struct ez_file {
	uint8_t *data;
	size_t size;
	uint32_t count;
	struct ez_place *index; /* restore file: where the records are, by inode */
};

uint32_t ez_crc32(uint32_t crc, const void *data, size_t len);

/*
 * Reads `name` below `dirfd`. 0, or -ENOENT, -EBADMSG (damaged), -EPERM (not a regular file of root's or
 * writable by others), -EFBIG, -ENOMEM, -errno. Nothing is allocated by an unchecked number.
 */
int ez_file_read(int dirfd, const char *name, uint32_t magic, struct ez_file *out);
void ez_file_free(struct ez_file *file);

/* The checks of ez_file_read on bytes in memory; takes `data` over only on success. The fuzzer's door. */
int ez_file_parse(uint8_t *data, size_t size, uint32_t magic, struct ez_file *out);

const struct ez_policy_entry *ez_policy_find(const struct ez_file *file, uint32_t ino);
const struct ez_restore *ez_restore_find(const struct ez_file *file, uint32_t ino);
const struct ez_kept *ez_kept_find(const struct ez_file *file, uint32_t ino);

static inline const struct ez_holding *ez_holding_of(const struct ez_file *file)
{
	return (const void *)(file->data + sizeof(struct ez_file_head));
}

static inline const uint8_t *ez_restore_target(const struct ez_restore *rec)
{
	return (const uint8_t *)(rec + 1);
}

static inline const uint8_t *ez_restore_name(const struct ez_restore *rec)
{
	return ez_restore_target(rec) + rec->target_len;
}

static inline const uint8_t *ez_restore_groups(const struct ez_restore *rec)
{
	return ez_restore_name(rec) + rec->name_len;
}

static inline const uint8_t *ez_inherit_key(const struct ez_inherit *rec)
{
	return (const uint8_t *)(rec + 1);
}

static inline const uint8_t *ez_inherit_path(const struct ez_inherit *rec)
{
	return ez_inherit_key(rec) + rec->key_len;
}

/*
 * The directory of what --write-conf has adapted for these images, on this host and boot: a descriptor, -ENOENT
 * where nothing was, or -errno.
 */
int ez_written_open(int images);

static inline const uint8_t *ez_inherit_data(const struct ez_inherit *rec)
{
	return ez_inherit_path(rec) + rec->path_len;
}

/* The record behind `rec`, the first for NULL; NULL behind the last. */
const struct ez_inherit *ez_inherit_next(const struct ez_file *file, const struct ez_inherit *rec);

/* Writes `len` bytes of a hostile name into `buf` with everything unprintable as \xNN; returns buf. */
const char *ez_printable(const uint8_t *name, size_t len, char *buf, size_t size);

/* Once, in criu itself before any fork: what the restoring tasks share. */
void ez_reconnect_init(const struct ez_file *records);

/* A socket as the record says: bound, connected under the recorded credentials. 0 or -errno, logged. */
int ez_reconnect(const struct ez_restore *rec, int *fd_out);

/* A stream or seqpacket socket whose peer has closed, an unconnected datagram socket. 0 or -errno. */
int ez_hung_up(uint32_t type, int *fd_out);

/*
 * Once, in criu itself before any fork: takes the kept descriptors from their holder for the tasks to come.
 * 0, or -errno: logged; -ENOENT where the holder is gone.
 */
int ez_kept_take(const struct ez_file *holding);

/* In the restoring task: the kept descriptor of this entry. 0 or -errno, logged. */
int ez_kept_get(const struct ez_file *holding, const struct ez_kept *kept, int *fd_out);

/* Once, in criu itself before any fork: opens what the records say and hands it over. 0 or -errno, logged. */
int ez_inherit_open(const struct ez_file *inherit);

/* Many descriptors may be open in criu at once, for a moment. */
void ez_raise_limit(void);

/* Once, in criu itself after a restore that succeeded: the holder need not wait. It may know already. */
void ez_kept_done(const struct ez_file *holding);
void ez_kept_free(void);

#endif
