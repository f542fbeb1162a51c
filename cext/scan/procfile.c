// SPDX-License-Identifier: GPL-2.0-only
/* Small files below /proc: proc_pid_stat(5), proc_pid_status(5), namespaces(7). */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scan.h"

/* What ended shows as ENOENT on lookup and as ESRCH (an fdinfo: ENOENT) on read: one name for both. */
static int task_error(int error)
{
	return error == ENOENT ? -ESRCH : -error;
}

int ez_slurp_at(int dirfd, const char *name, bool one_record, struct ez_buf *buf)
{
	int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC), ret;

	if (fd < 0)
		return task_error(errno);
	ret = ez_buf_slurp(buf, fd, one_record);
	close(fd);
	return ret < 0 ? task_error(-ret) : 0;
}

/* The text after the field `index` fields further on; fields are divided by one blank. */
static const char *skip_fields(const char *at, int index)
{
	while (index-- > 0) {
		at = strchr(at, ' ');
		if (!at)
			return NULL;
		at++;
	}
	return at;
}

static int parse_stat(const char *text, struct ez_stat *out)
{
	const char *open = strchr(text, '('), *close = strrchr(text, ')'), *at;
	size_t len;

	/* The command name may hold blanks and parentheses: only the outermost pair counts. */
	if (!open || !close || close < open || close[1] != ' ' || !close[2])
		return -EBADMSG;
	*out = (struct ez_stat){0};
	len = (size_t)(close - open - 1);
	memcpy(out->comm, open + 1, len < sizeof(out->comm) ? len : sizeof(out->comm) - 1);
	at = close + 2; /* field 3 */
	out->state = *at;
	at = skip_fields(at, 1);
	if (!at)
		return -EBADMSG;
	out->ppid = (int32_t)strtol(at, NULL, 10);
	at = skip_fields(at, 2); /* field 6 */
	if (!at)
		return -EBADMSG;
	out->sid = (int32_t)strtol(at, NULL, 10);
	at = skip_fields(at, 3); /* field 9 */
	if (!at)
		return -EBADMSG;
	out->flags = (uint32_t)strtoul(at, NULL, 10);
	at = skip_fields(at, 11); /* field 20 */
	if (!at)
		return -EBADMSG;
	out->threads = (uint32_t)strtoul(at, NULL, 10);
	at = skip_fields(at, 2); /* field 22 */
	if (!at)
		return -EBADMSG;
	out->starttime = strtoull(at, NULL, 10);
	return 0;
}

int ez_read_stat(int dirfd, const char *name, struct ez_buf *scratch, struct ez_stat *out)
{
	int ret = ez_slurp_at(dirfd, name, true, scratch);

	if (ret)
		return ret;
	if (!scratch->len)
		return -ESRCH;
	return parse_stat((const char *)scratch->data, out);
}

/* The line that starts with `key` (which includes the colon), behind the key; NULL if there is none. */
static const char *status_line(const char *text, const char *key)
{
	size_t len = strlen(key);

	while (text) {
		if (!strncmp(text, key, len))
			return text + len;
		text = strchr(text, '\n');
		if (text)
			text++;
	}
	return NULL;
}

static const char *skip_tabs(const char *at)
{
	while (*at == '\t' || *at == ' ')
		at++;
	return at;
}

static uint32_t status_number(const char *text, const char *key, int index)
{
	const char *at = status_line(text, key);
	char *end;
	unsigned long value = 0;

	for (; at && index >= 0; index--) {
		value = strtoul(skip_tabs(at), &end, 10);
		at = end;
	}
	return (uint32_t)value;
}

/* NSpid and NStgid list a number for each pid namespace from ours down to the task's own. */
static int32_t status_innermost(const char *text, const char *key, int32_t otherwise)
{
	const char *at = status_line(text, key);
	int32_t value = otherwise;
	char *end;

	if (!at)
		return otherwise;
	for (at = skip_tabs(at); *at >= '0' && *at <= '9'; at = skip_tabs(end))
		value = (int32_t)strtol(at, &end, 10);
	return value;
}

int ez_read_status(int dirfd, struct ez_buf *scratch, struct ez_status *out)
{
	int ret = ez_slurp_at(dirfd, "status", true, scratch);
	const char *text;

	if (ret)
		return ret;
	if (!scratch->len)
		return -ESRCH;
	/* "Name:" is the first line and its value is escaped by the kernel: it can't forge another line. */
	text = (const char *)scratch->data;
	*out = (struct ez_status){
		.tgid = (int32_t)status_number(text, "Tgid:", 0),
		.uid = status_number(text, "Uid:", 1),
		.gid = status_number(text, "Gid:", 1),
		.fdsize = status_number(text, "FDSize:", 0),
	};
	out->vpid = status_innermost(text, "NStgid:", out->tgid);
	out->vtid = status_innermost(text, "NSpid:", (int32_t)status_number(text, "Pid:", 0));
	return 0;
}

int ez_read_ns(int dirfd, const char *name, uint64_t *out)
{
	struct stat st;

	if (fstatat(dirfd, name, &st, 0))
		return task_error(errno);
	*out = st.st_ino;
	return 0;
}

int ez_open_task(int dirfd, int32_t tid, int *fd_out)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "task/%d", tid);
	fd = openat(dirfd, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return task_error(errno);
	*fd_out = fd;
	return 0;
}

static bool parse_number(const char *name, int32_t *out)
{
	char *end;
	long value;

	if (*name < '0' || *name > '9')
		return false;
	errno = 0;
	value = strtol(name, &end, 10);
	if (errno || *end || value > INT_MAX)
		return false;
	*out = (int32_t)value;
	return true;
}

int ez_each_number(int dirfd, const char *name, int (*each)(void *arg, int32_t number), void *arg)
{
	int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), ret = 0;
	struct dirent *entry;
	int32_t number;
	DIR *dir;

	if (fd < 0)
		return task_error(errno);
	dir = fdopendir(fd);
	if (!dir) {
		ret = -errno;
		close(fd);
		return ret;
	}
	for (;;) {
		errno = 0;
		entry = readdir(dir);
		if (!entry) {
			ret = errno ? task_error(errno) : 0;
			break;
		}
		if (!parse_number(entry->d_name, &number))
			continue;
		ret = each(arg, number);
		if (ret)
			break;
	}
	closedir(dir);
	return ret;
}
