// SPDX-License-Identifier: GPL-2.0-only
/* Reading and checking of the files in record.h. Knows nothing of criu, so that it can be fuzzed alone. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin.h"

uint32_t ez_crc32(uint32_t crc, const void *data, size_t len)
{
	const uint8_t *p = data;

	crc = ~crc;
	while (len--) {
		crc ^= *p++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
	}
	return ~crc;
}

static bool crc_matches(uint8_t *data, size_t size)
{
	struct ez_file_head head;
	uint32_t expected;

	memcpy(&head, data, sizeof(head));
	expected = head.crc;
	head.crc = 0;
	memcpy(data, &head, sizeof(head));
	return ez_crc32(0, data, size) == expected;
}

/* A path is absolute and has no NUL; an abstract name begins with one and fits an address. */
static bool target_is_sane(const uint8_t *target, uint32_t len)
{
	if (target[0] == 0)
		return len <= EZ_MAX_NAME;
	return target[0] == '/' && !memchr(target, 0, len);
}

/* Whether the record at `offset` lies in the file with all its variable parts. */
static bool record_fits(const uint8_t *data, size_t size, size_t offset, uint32_t *len)
{
	struct ez_restore rec;
	uint64_t need;

	if (size - offset < sizeof(rec))
		return false;
	memcpy(&rec, data + offset, sizeof(rec));
	if (rec.target_len == 0 || rec.target_len >= EZ_MAX_PATH || rec.name_len > EZ_MAX_NAME ||
	    rec.groups_len > EZ_MAX_GROUPS || rec.wait_ms > EZ_MAX_WAIT_MS)
		return false;
	need = sizeof(rec) + (uint64_t)rec.target_len + rec.name_len + 4ull * rec.groups_len;
	need = (need + 7) & ~7ull;
	if (rec.size != need || rec.size > size - offset)
		return false;
	*len = rec.size;
	return target_is_sane(data + offset + sizeof(rec), rec.target_len);
}

static int by_inode(const void *one, const void *other)
{
	uint32_t a = ((const struct ez_place *)one)->ino, b = ((const struct ez_place *)other)->ino;

	return a < b ? -1 : a > b;
}

/* Sorted: a tree may have thousands of sockets, and criu asks for each. */
static int index_records(struct ez_file *file)
{
	size_t offset = sizeof(struct ez_file_head);

	file->index = calloc(file->count ? file->count : 1, sizeof(*file->index));
	if (!file->index)
		return -ENOMEM;
	for (uint32_t i = 0; i < file->count; i++) {
		uint32_t len;

		if (!record_fits(file->data, file->size, offset, &len))
			goto damaged;
		file->index[i].ino = ((const struct ez_restore *)(const void *)(file->data + offset))->ino;
		file->index[i].offset = (uint32_t)offset;
		offset += len;
	}
	if (offset == file->size) {
		qsort(file->index, file->count, sizeof(*file->index), by_inode);
		return 0;
	}
damaged:
	free(file->index);
	file->index = NULL;
	return -EBADMSG;
}

static bool ends_with_zero(const char *text, size_t size)
{
	return memchr(text, 0, size) != NULL;
}

/* Texts end within their fields; the identifier becomes a part of a path and is nothing but hex digits. */
static int check_holding(const struct ez_file *file)
{
	const struct ez_holding *holding = ez_holding_of(file);
	size_t need = sizeof(struct ez_file_head) + sizeof(*holding) + (size_t)file->count * sizeof(struct ez_kept);

	if (file->size != need || !ends_with_zero(holding->boot_id, sizeof(holding->boot_id)) ||
	    !ends_with_zero(holding->id, sizeof(holding->id)) ||
	    !ends_with_zero(holding->digest, sizeof(holding->digest)))
		return -EBADMSG;
	if (strlen(holding->id) != 32 || strspn(holding->id, "0123456789abcdef") != 32)
		return -EBADMSG;
	return 0;
}

/* The length of the record at `offset` if it lies in the file with its key and path, else 0. */
static uint32_t inherit_fits(const uint8_t *data, size_t size, size_t offset)
{
	const uint8_t *key, *path;
	struct ez_inherit rec;
	uint64_t need;

	if (size - offset < sizeof(rec))
		return 0;
	memcpy(&rec, data + offset, sizeof(rec));
	if (rec.key_len == 0 || rec.key_len >= EZ_MAX_KEY || rec.path_len >= EZ_MAX_PATH || rec.target > EZ_TARGET_HANGUP ||
	    (rec.target == EZ_TARGET_PATH) != (rec.path_len > 0))
		return 0;
	need = (sizeof(rec) + (uint64_t)rec.key_len + rec.path_len + rec.data_len + 7) & ~7ull;
	if (rec.size != need || rec.size > size - offset)
		return 0;
	key = data + offset + sizeof(rec);
	path = key + rec.key_len;
	if (memchr(key, 0, rec.key_len) || (rec.path_len && (path[0] != '/' || memchr(path, 0, rec.path_len))))
		return 0;
	return rec.size;
}

static int check_inherit(const struct ez_file *file)
{
	size_t offset = sizeof(struct ez_file_head);

	for (uint32_t i = 0; i < file->count; i++) {
		uint32_t len = inherit_fits(file->data, file->size, offset);

		if (!len)
			return -EBADMSG;
		offset += len;
	}
	return offset == file->size ? 0 : -EBADMSG;
}

const struct ez_inherit *ez_inherit_next(const struct ez_file *file, const struct ez_inherit *rec)
{
	const uint8_t *next = rec ? (const uint8_t *)rec + rec->size : file->data + sizeof(struct ez_file_head);

	return next < file->data + file->size ? (const void *)next : NULL;
}

int ez_file_parse(uint8_t *data, size_t size, uint32_t magic, struct ez_file *out)
{
	struct ez_file_head head;
	int ret = 0;

	memset(out, 0, sizeof(*out));
	if (size < sizeof(head) || size > EZ_MAX_FILE)
		return -EBADMSG;
	memcpy(&head, data, sizeof(head));
	if (head.magic != magic || head.version != EZ_FILE_VERSION || head.size != size ||
	    head.count > EZ_MAX_RECORDS || !crc_matches(data, size))
		return -EBADMSG;
	out->data = data;
	out->size = size;
	out->count = head.count;
	if (magic == EZ_RESTORE_MAGIC)
		ret = index_records(out);
	else if (magic == EZ_HOLDING_MAGIC)
		ret = check_holding(out);
	else if (magic == EZ_INHERIT_MAGIC)
		ret = check_inherit(out);
	else if (size != sizeof(head) + (size_t)head.count * sizeof(struct ez_policy_entry))
		ret = -EBADMSG;
	if (ret)
		memset(out, 0, sizeof(*out)); /* the data stays the caller's */
	return ret;
}

static int read_whole(int fd, size_t size, uint8_t *data)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = read(fd, data + done, size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EBADMSG;
		done += n;
	}
	return 0;
}

static int read_checked(int fd, uint32_t magic, struct ez_file *out)
{
	struct stat st;
	uint8_t *data;
	int ret;

	if (fstat(fd, &st))
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_mode & 022)
		return -EPERM;
	if (st.st_size > EZ_MAX_FILE)
		return -EFBIG;
	if (st.st_size < (off_t)sizeof(struct ez_file_head))
		return -EBADMSG;
	data = malloc(st.st_size);
	if (!data)
		return -ENOMEM;
	ret = read_whole(fd, st.st_size, data);
	if (!ret)
		ret = ez_file_parse(data, st.st_size, magic, out);
	if (ret)
		free(data);
	return ret;
}

int ez_file_read(int dirfd, const char *name, uint32_t magic, struct ez_file *out)
{
	int fd, ret;

	memset(out, 0, sizeof(*out));
	fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ret = read_checked(fd, magic, out);
	close(fd);
	return ret;
}

void ez_file_free(struct ez_file *file)
{
	free(file->data);
	free(file->index);
	memset(file, 0, sizeof(*file));
}

const struct ez_policy_entry *ez_policy_find(const struct ez_file *file, uint32_t ino)
{
	const struct ez_policy_entry *entry = (const void *)(file->data + sizeof(struct ez_file_head));

	for (uint32_t i = 0; i < file->count; i++)
		if (entry[i].ino == ino)
			return &entry[i];
	return NULL;
}

const struct ez_restore *ez_restore_find(const struct ez_file *file, uint32_t ino)
{
	const struct ez_place wanted = { .ino = ino }, *place;

	place = bsearch(&wanted, file->index, file->count, sizeof(*file->index), by_inode);
	return place ? (const void *)(file->data + place->offset) : NULL;
}

const struct ez_kept *ez_kept_find(const struct ez_file *file, uint32_t ino)
{
	const struct ez_kept *kept = (const void *)(ez_holding_of(file) + 1);

	for (uint32_t i = 0; i < file->count; i++)
		if (kept[i].ino == ino)
			return &kept[i];
	return NULL;
}

const char *ez_printable(const uint8_t *name, size_t len, char *buf, size_t size)
{
	static const char hex[] = "0123456789abcdef";
	size_t used = 0;

	for (size_t i = 0; i < len && used + 5 < size; i++) {
		uint8_t c = name[i];

		if (i == 0 && c == 0) {
			buf[used++] = '@';
		} else if (c >= 0x20 && c < 0x7f && c != '\\') {
			buf[used++] = c;
		} else {
			buf[used++] = '\\';
			buf[used++] = 'x';
			buf[used++] = hex[c >> 4];
			buf[used++] = hex[c & 15];
		}
	}
	buf[used] = 0;
	return buf;
}
