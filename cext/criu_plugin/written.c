// SPDX-License-Identifier: GPL-2.0-only
/*
 * What `externalize restore --write-conf` has adapted for a criu that is started by others.
 *
 * It lies below /run, so on this host and boot only, in a directory that is named after the image directory
 * and the plan in it: that of other images, or of ones that were dumped anew, is not found.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin.h"

static int plan_crc(int images, off_t *size, uint32_t *crc)
{
	struct stat st;
	void *data;
	int fd = openat(images, EZ_PLAN_FILE, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), ret = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > (off_t)EZ_MAX_FILE) {
		close(fd);
		return -EPERM;
	}
	data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED)
		ret = -errno;
	close(fd);
	if (ret)
		return ret;
	*size = st.st_size;
	*crc = ez_crc32(0, data, (size_t)st.st_size);
	munmap(data, (size_t)st.st_size);
	return 0;
}

int ez_written_open(int images)
{
	char path[128];
	struct stat st;
	uint32_t crc = 0;
	off_t size = 0;
	int ret, fd;

	if (fstat(images, &st))
		return -errno;
	ret = plan_crc(images, &size, &crc);
	if (ret)
		return ret;
	snprintf(path, sizeof(path), EZ_WRITTEN "/%llu-%llu-%llu-%u", (unsigned long long)st.st_dev,
		 (unsigned long long)st.st_ino, (unsigned long long)size, crc);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}
