// SPDX-License-Identifier: GPL-2.0-only
/* Growable byte buffers whose sizes never overflow. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scan.h"

#define FIRST_SIZE 1024
#define READ_CHUNK 4096

static int reserve(struct ez_buf *buf, size_t n)
{
	size_t need, cap;
	unsigned char *data;

	if (__builtin_add_overflow(buf->len, n, &need))
		return -ENOMEM;
	if (need <= buf->cap)
		return 0;
	cap = buf->cap ? buf->cap : FIRST_SIZE;
	while (cap < need) {
		if (__builtin_mul_overflow(cap, (size_t)2, &cap))
			return -ENOMEM;
	}
	data = realloc(buf->data, cap);
	if (!data)
		return -ENOMEM;
	buf->data = data;
	buf->cap = cap;
	return 0;
}

int ez_buf_extend(struct ez_buf *buf, size_t n, void **out)
{
	int ret = reserve(buf, n);

	if (ret)
		return ret;
	if (n)
		memset(buf->data + buf->len, 0, n);
	*out = buf->data + buf->len;
	buf->len += n;
	return 0;
}

int ez_buf_append(struct ez_buf *buf, const void *data, size_t n)
{
	int ret = reserve(buf, n);

	if (ret)
		return ret;
	if (n)
		memcpy(buf->data + buf->len, data, n);
	buf->len += n;
	return 0;
}

int ez_blob_add(struct ez_buf *blob, const void *data, size_t n, size_t align, uint32_t *off)
{
	size_t pad = (align - blob->len % align) % align, end;
	void *skipped;
	int ret;

	if (__builtin_add_overflow(blob->len + pad, n, &end) || end > UINT32_MAX)
		return -EOVERFLOW;
	ret = ez_buf_extend(blob, pad, &skipped);
	if (ret)
		return ret;
	*off = (uint32_t)blob->len;
	return ez_buf_append(blob, data, n);
}

int ez_buf_slurp(struct ez_buf *buf, int fd, bool one_record)
{
	bool whole = false;
	ssize_t n;
	int ret;

	buf->len = 0;
	while (!whole) {
		ret = reserve(buf, READ_CHUNK);
		if (ret)
			return ret;
		/* One byte stays free for the NUL. */
		n = read(fd, buf->data + buf->len, buf->cap - buf->len - 1);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		buf->len += (size_t)n;
		whole = !n || (one_record && buf->len < buf->cap - 1);
	}
	buf->data[buf->len] = '\0';
	return 0;
}

void ez_buf_free(struct ez_buf *buf)
{
	free(buf->data);
	*buf = (struct ez_buf){0};
}
