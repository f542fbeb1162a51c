// SPDX-License-Identifier: GPL-2.0-only
/*
 * Descriptors that lead out of the tree: files of another mount namespace and the like.
 *
 * They are opened once, in criu itself before any fork, where paths are those of the host and we are root of the
 * initial namespaces, with the flags that they had. criu's own --inherit-fd carries them into the restoring
 * tasks (inherited_fd() in criu/files.c): it gives the very open file description to whoever has the file with
 * that name in the images. So nothing is opened again and no flag gets lost.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu_abi.h"
#include "plugin.h"

/* What open(2) makes or does once is not asked for again; F_GETFL tells none of it but __O_TMPFILE. */
#define NEVER_AGAIN                                                                             \
	(O_CREAT | O_EXCL | O_TRUNC | O_NOCTTY | O_NOFOLLOW | O_CLOEXEC | O_ASYNC | (O_TMPFILE & ~O_DIRECTORY))

void ez_raise_limit(void)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static bool may(int flags, int access)
{
	return (flags & O_ACCMODE) == O_RDWR || (flags & O_ACCMODE) == access;
}

/* Whether a descriptor with the flags `has` can stand for one that was opened with `needs`. */
static bool access_suffices(int has, int needs)
{
	int access = needs & O_ACCMODE;

	return access == O_RDWR ? (has & O_ACCMODE) == O_RDWR : may(has, access);
}

/* open(2) of a fifo waits for the other end; a reader and writer of our own is there for that moment. */
static int open_fifo(const char *path, int flags)
{
	int both, fd, ret;

	both = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (both < 0)
		return -errno;
	fd = open(path, flags);
	ret = fd < 0 ? -errno : fd;
	close(both);
	return ret;
}

/* What a descriptor is of, opened again: a description of its own, whose flags change nothing for others. */
static int open_again(int number, int flags)
{
	struct stat st;
	char path[64];
	int fd;

	if (fstat(number, &st))
		return -errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", number);
	flags |= O_NOCTTY | O_CLOEXEC;
	if (S_ISFIFO(st.st_mode))
		return open_fifo(path, flags);
	fd = open(path, flags);
	return fd < 0 ? -errno : fd;
}

/* Pipes and terminals: others may have the description that we have. */
static int open_shared(int number, const struct ez_inherit *rec)
{
	return open_again(number, (int)rec->open_flags & (O_ACCMODE | O_NONBLOCK));
}

/* criu's own descriptor of a number, or -errno. A file's is shared, for the sake of its offset. */
static int take_stdio(const struct ez_inherit *rec, const char *name)
{
	static const char *const names[] = { "stdin", "stdout", "stderr" };
	struct stat st;
	int flags, fd;

	flags = fcntl((int)rec->target, F_GETFL);
	if (flags < 0) {
		ez_log(EZ_LOG_ERROR, "%s is to be criu's %s, which is closed\n", name, names[rec->target]);
		return -errno;
	}
	if (!access_suffices(flags, (int)rec->open_flags)) {
		ez_log(EZ_LOG_ERROR, "%s is to be criu's %s, which can't be %s as it was\n", name, names[rec->target],
		       (rec->open_flags & O_ACCMODE) == O_RDONLY ? "read" : "written");
		return -EACCES;
	}
	if (fstat((int)rec->target, &st))
		return -errno;
	if (S_ISFIFO(st.st_mode) || isatty((int)rec->target))
		return open_shared((int)rec->target, rec);
	fd = fcntl((int)rec->target, F_DUPFD_CLOEXEC, 3);
	return fd < 0 ? -errno : fd;
}

/* Where the program was. A log that has been cut off since, or another file, goes on at its end. */
static int seek(int fd, const struct stat *st, const struct ez_inherit *rec, const char *name)
{
	uint64_t pos = rec->pos;

	if (!pos || rec->open_flags & O_PATH || (!S_ISREG(st->st_mode) && !S_ISDIR(st->st_mode)))
		return 0;
	if (S_ISREG(st->st_mode) && pos > (uint64_t)st->st_size) {
		if (!(rec->flags & EZ_REC_MAPPED || rec->open_flags & O_APPEND)) {
			ez_log(EZ_LOG_ERROR, "%s: the file has %lld bytes, and the program was at byte %llu\n", name,
			       (long long)st->st_size, (unsigned long long)pos);
			return -ESPIPE;
		}
		pos = (uint64_t)st->st_size;
	}
	return lseek(fd, (off_t)pos, SEEK_SET) < 0 ? -errno : 0;
}

static int check_opened(int fd, const struct ez_inherit *rec, const char *name)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	if ((st.st_mode & S_IFMT) != (rec->mode & S_IFMT) && !(rec->flags & EZ_REC_MAPPED)) {
		ez_log(EZ_LOG_ERROR, "%s: what is there is of another kind than it was\n", name);
		return -EINVAL;
	}
	return seek(fd, &st, rec, name);
}

/*
 * The path itself, O_PATH. No link is followed but where the user has named it: whoever can write in a directory on
 * the way, as a program can where its log is, must not choose what root opens. openat2(2), Linux 5.6.
 */
static int find(const char *path, const struct ez_inherit *rec)
{
	struct open_how how = { .flags = O_PATH | O_CLOEXEC };
	int fd;

	if (!(rec->flags & EZ_REC_MAPPED))
		how.resolve = RESOLVE_NO_SYMLINKS;
	fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
	return fd < 0 ? -errno : fd;
}

/* What `find` has found, as it was opened. */
static int open_found(int place, const struct ez_inherit *rec)
{
	int flags = (int)rec->open_flags & ~NEVER_AGAIN;
	struct stat st;
	int fd;

	if (flags & O_PATH) {
		fd = fcntl(place, F_DUPFD_CLOEXEC, 3);
		return fd < 0 ? -errno : fd;
	}
	if (fstat(place, &st))
		return -errno;
	/* What was written to a pipe is never written over what a file holds. */
	if (S_ISFIFO(rec->mode) && S_ISREG(st.st_mode))
		flags |= O_APPEND;
	return open_again(place, flags);
}

/* The file at the record's path, as it was opened, or -errno. */
static int open_at_path(const struct ez_inherit *rec, const char *name)
{
	char path[EZ_MAX_PATH], shown[4 * 256];
	int place, fd, ret;

	memcpy(path, ez_inherit_path(rec), rec->path_len);
	path[rec->path_len] = 0;
	fd = place = find(path, rec);
	if (place >= 0) {
		fd = open_found(place, rec);
		close(place);
	}
	if (fd < 0) {
		ez_log(EZ_LOG_ERROR, "%s: can't open %s as it was: %s\n", name,
		       ez_printable(ez_inherit_path(rec), rec->path_len, shown, sizeof(shown)),
		       fd == -ELOOP ? "a symbolic link is on the way" : strerror(-fd));
		return fd;
	}
	ret = check_opened(fd, rec, name);
	if (!ret)
		return fd;
	close(fd);
	return ret;
}

static int fill(int fd, const struct ez_inherit *rec)
{
	uint32_t done = 0;

	if (rec->data_len > 65536 && fcntl(fd, F_SETPIPE_SZ, (int)rec->data_len) < 0)
		return -errno;
	while (done < rec->data_len) {
		ssize_t n = write(fd, ez_inherit_data(rec) + done, rec->data_len - done);

		if (n <= 0)
			return n ? -errno : -EIO;
		done += (uint32_t)n;
	}
	return 0;
}

static bool same_name(const struct ez_inherit *a, const struct ez_inherit *b)
{
	const uint8_t *end = a ? memrchr(ez_inherit_key(a), '#', a->key_len) : NULL;
	size_t len = end ? (size_t)(end - ez_inherit_key(a)) + 1 : 0;

	return len && len < b->key_len && !memcmp(ez_inherit_key(a), ez_inherit_key(b), len);
}

/* One end of a new pipe with what was unread, the other end closed; of the same pipe as `before` it was. */
static int hung_up(const struct ez_inherit *rec, const struct ez_inherit *before, int before_fd)
{
	int pair[2], ret, reading = (rec->open_flags & O_ACCMODE) == O_RDONLY;

	if (before_fd >= 0 && same_name(before, rec))
		return open_shared(before_fd, rec);
	if (pipe2(pair, O_NONBLOCK | O_CLOEXEC))
		return -errno;
	ret = reading ? fill(pair[1], rec) : 0;
	if (!ret && fcntl(pair[!reading], F_SETFL, rec->open_flags & O_NONBLOCK) < 0)
		ret = -errno;
	close(pair[reading]);
	if (!ret)
		return pair[!reading];
	close(pair[!reading]);
	return ret;
}

static int take(const struct ez_inherit *rec, const char *name, const struct ez_inherit *before, int before_fd)
{
	if (rec->target == EZ_TARGET_HANGUP)
		return hung_up(rec, before, before_fd);
	return rec->target == EZ_TARGET_PATH ? open_at_path(rec, name) : take_stdio(rec, name);
}

/* Files are compared by kind already; the keys of others say what criu will take them for. */
static bool is_what_its_key_says(int fd, const char *key)
{
	const char *what = !strncmp(key, "tty[", 4) && !isatty(fd)			      ? "terminal" :
			   !strncmp(key, "net[", 4) && ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET ? "net namespace" :
			   !strncmp(key, "pid[", 4) && ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWPID ? "pid namespace" :
												NULL;

	if (what)
		ez_log(EZ_LOG_ERROR, "%s was a %s, and what is to be handed over is none\n", key, what);
	return !what;
}

/* `before`: the record handed over last, as `*before_fd`; that becomes the descriptor of this one. */
static int hand_over(const struct ez_inherit *rec, const struct ez_inherit *before, int *before_fd)
{
	char key[EZ_MAX_KEY];
	int fd;

	memcpy(key, ez_inherit_key(rec), rec->key_len);
	key[rec->key_len] = 0;
	fd = take(rec, key, before, *before_fd);
	if (fd < 0) {
		ez_log(EZ_LOG_ERROR, "%s can't be handed over: %s\n", key, strerror(-fd));
		return fd;
	}
	if (!is_what_its_key_says(fd, key)) {
		close(fd);
		return -EINVAL;
	}
	*before_fd = fd;
	if (!inherit_fd_add(fd, key))
		return 0;
	close(fd);
	return -ENOMEM;
}

int ez_inherit_open(const struct ez_file *inherit)
{
	const struct ez_inherit *before = NULL;
	int ret = 0, before_fd = -1;

	if (inherit->count && !inherit_fd_add) {
		ez_log(EZ_LOG_ERROR, "this criu can't hand over descriptors\n");
		return -ENOSYS;
	}
	ez_raise_limit();
	for (const struct ez_inherit *rec = ez_inherit_next(inherit, NULL); rec && !ret;
	     rec = ez_inherit_next(inherit, rec)) {
		ret = hand_over(rec, before, &before_fd);
		before = rec;
	}
	return ret;
}
