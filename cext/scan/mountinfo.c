// SPDX-License-Identifier: GPL-2.0-only
/* Mount tables: proc_pid_mountinfo(5), one for each mount namespace. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "scan.h"

/* How often a table is read anew that changed while it was read; then it changes all the time. */
#define MAX_ATTEMPTS 16

/*
 * File systems that answer from this machine alone. On any other, fstat(2) or close(2) of a duplicate may
 * wait for a server that is gone; what isn't known is taken for such a one.
 */
static const char *const local_types[] = {
	"autofs",   "bcachefs",	 "binfmt_misc", "bpf",	  "btrfs",	"cgroup",    "cgroup2",	  "configfs",
	"debugfs",  "devpts",	 "devtmpfs",	"efivarfs", "erofs",	"exfat",     "ext2",	  "ext3",
	"ext4",	    "f2fs",	 "fusectl",	"hugetlbfs", "iso9660",	"mqueue",    "nsfs",	  "ntfs3",
	"overlay",  "proc",	 "pstore",	"ramfs",  "resctrl",	"rootfs",    "rpc_pipefs", "securityfs",
	"selinuxfs", "squashfs", "sysfs",	"tmpfs",  "tracefs",	"udf",	     "vfat",	  "xfs",
	"zfs",
};

static bool is_local(const char *type)
{
	size_t i;

	for (i = 0; i < sizeof(local_types) / sizeof(local_types[0]); i++) {
		if (!strcmp(type, local_types[i]))
			return true;
	}
	return false;
}

/* Cuts the field at *at off and goes behind it. NULL at the end of the line. */
static char *next_field(char **at)
{
	char *field = *at, *end;

	if (!field || !*field)
		return NULL;
	end = strchr(field, ' ');
	if (end)
		*end++ = '\0';
	*at = end;
	return field;
}

static bool is_octal(const char *at)
{
	return at[0] >= '0' && at[0] <= '3' && at[1] >= '0' && at[1] <= '7' && at[2] >= '0' && at[2] <= '7';
}

/* Undoes the kernel's \ooo in place; returns the length, as the result may hold any byte. */
static size_t decode(char *text)
{
	char *from = text, *to = text;

	while (*from) {
		if (*from == '\\' && is_octal(from + 1)) {
			*to++ = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
			from += 4;
		} else {
			*to++ = *from++;
		}
	}
	return (size_t)(to - text);
}

static int add_text(struct ez_walk *walk, char *text, uint32_t *off, uint32_t *len)
{
	size_t size = decode(text);

	*len = (uint32_t)size;
	return ez_blob_add(&walk->out->blob, text, size, 1, off);
}

static void parse_optional(const char *field, struct ez_mount *mount)
{
	if (!strncmp(field, "shared:", 7))
		mount->shared = atoi(field + 7);
	else if (!strncmp(field, "master:", 7))
		mount->master = atoi(field + 7);
	else if (!strncmp(field, "propagate_from:", 15))
		mount->propagate_from = atoi(field + 15);
	else if (!strcmp(field, "unbindable"))
		mount->unbindable = 1;
}

/* Of a table without a namespace (ns = 0) only the ids are of interest: it is none of the tree's. */
static int store(struct ez_walk *walk, struct ez_mount *mount, char *text[6])
{
	bool local = is_local(text[3]);
	int ret;

	ret = ez_map_put(&walk->mnt_ids, (uint64_t)(uint32_t)mount->mnt_id + 1, mount->dev << 1 | local);
	if (!local)
		walk->careful = true;
	if (ret || !mount->mnt_ns)
		return ret;
	ret = add_text(walk, text[0], &mount->root_off, &mount->root_len);
	if (!ret)
		ret = add_text(walk, text[1], &mount->mountpoint_off, &mount->mountpoint_len);
	if (!ret)
		ret = add_text(walk, text[2], &mount->options_off, &mount->options_len);
	if (!ret)
		ret = add_text(walk, text[3], &mount->fstype_off, &mount->fstype_len);
	if (!ret)
		ret = add_text(walk, text[4], &mount->source_off, &mount->source_len);
	if (!ret)
		ret = add_text(walk, text[5], &mount->super_off, &mount->super_len);
	return ret ? ret : ez_buf_append(&walk->out->mounts, mount, sizeof(*mount));
}

/* 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue */
static int parse_line(struct ez_walk *walk, char *line, uint64_t ns)
{
	struct ez_mount mount = {.mnt_ns = ns};
	unsigned int major, minor;
	char *text[6], *field, *at = line;
	int i;

	field = next_field(&at);
	mount.mnt_id = field ? atoi(field) : 0;
	field = next_field(&at);
	mount.parent_id = field ? atoi(field) : 0;
	field = next_field(&at);
	if (!field || sscanf(field, "%u:%u", &major, &minor) != 2)
		return -EBADMSG;
	mount.dev = makedev(major, minor);
	for (i = 0; i < 3; i++)
		text[i] = next_field(&at);
	while ((field = next_field(&at)) && strcmp(field, "-"))
		parse_optional(field, &mount);
	text[3] = next_field(&at);
	/* A source can be empty (mount(2) with ""): then two blanks follow each other. */
	if (at && *at == ' ') {
		*at = '\0';
		text[4] = at++;
	} else {
		text[4] = next_field(&at);
	}
	/* The last field is all the rest: a file system may print blanks in its options. */
	text[5] = at;
	for (i = 0; i < 6; i++) {
		if (!text[i])
			return -EBADMSG;
	}
	return store(walk, &mount, text);
}

static int parse_table(struct ez_walk *walk, uint64_t ns)
{
	char *line = (char *)walk->scratch.data, *end;
	int ret = 0;

	while (!ret && *line) {
		end = strchr(line, '\n');
		if (!end)
			return -EBADMSG;
		*end = '\0';
		ret = parse_line(walk, line, ns);
		line = end + 1;
	}
	return ret;
}

/* The kernel marks an open mountinfo file when its namespace changed since it was opened or last polled. */
static bool has_changed(int fd)
{
	struct pollfd poller = {.fd = fd, .events = POLLPRI};

	return poll(&poller, 1, 0) > 0 && (poller.revents & (POLLPRI | POLLERR));
}

static int read_table(struct ez_walk *walk, int fd, uint64_t ns)
{
	int attempt, ret;

	for (attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
		if (lseek(fd, 0, SEEK_SET))
			return -errno;
		ret = ez_buf_slurp(&walk->scratch, fd, false);
		if (ret)
			return ret;
		/*
		 * A read of many lines is not atomic. Every mount that is there all the time is in it, but for
		 * those that come and go the lines may be of different moments.
		 */
		if (!has_changed(fd))
			break;
	}
	return parse_table(walk, ns);
}

/*
 * A file that shows the table from the namespace's root: mountinfo shows only what lies below the root of
 * the task it belongs to, and tells places relative to that.
 */
static int open_table(struct ez_walk *walk, int dirfd, int *fd_out)
{
	char root[2];
	int nsfd, ret;

	if (readlinkat(dirfd, "root", root, sizeof(root)) == 1 && root[0] == '/') {
		*fd_out = openat(dirfd, "mountinfo", O_RDONLY | O_CLOEXEC);
		return *fd_out < 0 ? -errno : 0;
	}
	nsfd = openat(dirfd, "ns/mnt", O_RDONLY | O_CLOEXEC);
	if (nsfd < 0)
		return -errno;
	ret = ez_mountinfo_open_in(nsfd, walk->proc_fd, fd_out);
	close(nsfd);
	return ret;
}

/* A descriptor of the tree may be of a mount in our namespace, as those that a container was started with. */
static int learn_own_mounts(struct ez_walk *walk)
{
	uint64_t own;
	int ret;

	if (walk->own_mounts_known)
		return 0;
	walk->own_mounts_known = true;
	ret = ez_read_ns(walk->proc_fd, "thread-self/ns/mnt", &own);
	if (!ret && ez_map_get(&walk->mnt_done, own))
		return 0;
	if (!ret)
		ret = ez_slurp_at(walk->proc_fd, "thread-self/mountinfo", false, &walk->scratch);
	return ret ? ret : parse_table(walk, 0);
}

/* memfds lie on a mount of the kernel's own that no table shows. */
static int learn_memfd_mount(struct ez_walk *walk)
{
	int fd = memfd_create("externalizer", MFD_CLOEXEC), ret;
	char name[48], *at;
	struct stat st;

	if (fd < 0)
		return errno == EMFILE || errno == ENFILE ? -errno : 0;
	snprintf(name, sizeof(name), "self/fdinfo/%d", fd);
	ret = ez_slurp_at(walk->proc_fd, name, false, &walk->scratch);
	at = ret ? NULL : strstr((char *)walk->scratch.data, "mnt_id:\t");
	if (at && !fstat(fd, &st))
		ret = ez_map_put(&walk->mnt_ids, strtoull(at + 8, NULL, 10) + 1, (uint64_t)st.st_dev << 1 | 1);
	close(fd);
	return ret;
}

int ez_mounts_read(struct ez_walk *walk, int dirfd, int32_t tid, uint64_t ns)
{
	size_t mounts_off = walk->out->mounts.len, blob_off = walk->out->blob.len;
	bool careful = walk->careful;
	int fd, ret;

	if (!ns || ez_map_get(&walk->mnt_done, ns))
		return 0;
	ret = open_table(walk, dirfd, &fd);
	if (!ret) {
		ret = read_table(walk, fd, ns);
		close(fd);
	}
	if (ret == -ENOENT || ret == -ESRCH) /* the task ended; the next one of the namespace will do */
		return 0;
	if (ez_fatal(ret))
		return ret;
	if (ret) {
		walk->out->mounts.len = mounts_off;
		walk->out->blob.len = blob_off;
		/* Without the table every file may lie on a file system that blocks. */
		walk->careful = true;
		ret = ez_unreadable_add(walk, tid, -1, EZ_WHAT_MOUNTINFO, -ret);
	}
	if (!ret)
		ret = ez_map_put(&walk->mnt_done, ns, 1);
	if (!ret)
		ret = learn_own_mounts(walk);
	if (!ret && walk->careful && !careful)
		ret = learn_memfd_mount(walk);
	return ret;
}
