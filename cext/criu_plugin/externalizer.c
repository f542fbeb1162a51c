// SPDX-License-Identifier: GPL-2.0-only
/*
 * The criu plugin. At dump it accepts every external unix socket that the policy does not refuse, also
 * those that were opened after the scan, and notes what only the socket itself can tell. At restore it
 * makes each of them again from the records that the hook completed at post-dump.
 *
 * This is C inside criu as root: every return is a veto with a message or success, never a guess.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "criu_abi.h"
#include "plugin.h"

static struct ez_file policy;
static struct ez_file records;
static struct ez_file holding;
static int policy_error = -ENOENT;
static int records_error = -ENOENT;
static int holding_error = -ENOENT;

void ez_log(unsigned int level, const char *format, ...)
{
	char line[2048];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (print_on_level)
		print_on_level(level, "externalizer: %s", line);
	else
		fprintf(stderr, "externalizer: %s", line);
}

static int image_dir(void)
{
	return criu_get_image_dir ? criu_get_image_dir() : -1;
}

static unsigned long long own_starttime(void)
{
	unsigned long long start = 0;
	char line[1024], *p;
	ssize_t n;
	int fd;

	fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, line, sizeof(line) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	line[n] = 0;
	/* Fields are counted from behind the command name, which may hold anything (proc_pid_stat(5)). */
	p = strrchr(line, ')');
	if (!p || sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
			 &start) != 1)
		return 0;
	return start;
}

/* The hook writes the policy under the very criu that now dumps; one of another run says nothing. */
static int load_policy(void)
{
	struct ez_file_head head;
	int ret;

	ret = ez_file_read(image_dir(), EZ_POLICY_FILE, EZ_POLICY_MAGIC, &policy);
	if (ret)
		return ret;
	memcpy(&head, policy.data, sizeof(head));
	if (head.criu_pid == (uint32_t)getpid() && head.criu_starttime == own_starttime())
		return 0;
	ez_file_free(&policy);
	return -ESTALE;
}

/*
 * A file of the images, or of the directory that `externalize restore` adapted it in: for this one restore, or
 * with --write-conf for those that others start. A directory that lacks the file is an error: the wish that it
 * stands for must not be lost.
 */
static int read_records(const char *name, uint32_t magic, struct ez_file *out)
{
	const char *adapted = getenv(EZ_RECORDS_VARIABLE);
	int dir, ret;

	if (adapted)
		dir = open(adapted, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	else
		dir = getenv(EZ_RUN_VARIABLE) ? -1 : ez_written_open(image_dir());
	if (!adapted && dir < 0)
		return ez_file_read(image_dir(), name, magic, out);
	if (dir < 0)
		return -errno;
	ret = ez_file_read(dir, name, magic, out);
	close(dir);
	return ret;
}

/* A tree whose descriptors all lead inside has no file. What is in one must succeed: criu would find nothing. */
static int hand_over(void)
{
	struct ez_file inherit;
	int ret;

	ret = read_records(EZ_INHERIT_FILE, EZ_INHERIT_MAGIC, &inherit);
	if (ret == -ENOENT)
		return 0;
	if (ret) {
		ez_log(EZ_LOG_ERROR, "can't use %s, which says what is handed over: %s\n", EZ_INHERIT_FILE,
		       ret == -EBADMSG ? "it is damaged" : strerror(-ret));
		return -1;
	}
	ret = ez_inherit_open(&inherit);
	ez_file_free(&inherit);
	return ret ? -1 : 0;
}

/*
 * All at once and here: later, in the tasks' namespaces, neither directory nor holder can be reached. No error
 * but those of a holder and of descriptors that must be there: a tree without external sockets needs no file, and
 * an error from here ends every restore.
 */
static int init_restore(void)
{
	records_error = read_records(EZ_RESTORE_FILE, EZ_RESTORE_MAGIC, &records);
	ez_reconnect_init(&records);
	holding_error = read_records(EZ_HOLDING_FILE, EZ_HOLDING_MAGIC, &holding);
	if (!holding_error)
		holding_error = ez_kept_take(&holding);
	else if (holding_error != -ENOENT)
		ez_log(EZ_LOG_ERROR, "can't use %s, which says who keeps sockets: %s\n", EZ_HOLDING_FILE,
		       holding_error == -EBADMSG ? "it is damaged" : strerror(-holding_error));
	return hand_over();
}

static int plugin_init(int stage)
{
	if (stage == EZ_CRIU_STAGE_DUMP)
		policy_error = load_policy();
	else if (stage == EZ_CRIU_STAGE_RESTORE)
		return init_restore();
	return 0;
}

static void plugin_exit(int stage, int ret)
{
	if (stage == EZ_CRIU_STAGE_RESTORE && !ret && holding.data)
		ez_kept_done(&holding);
	ez_file_free(&policy);
	ez_file_free(&records);
	ez_file_free(&holding);
	ez_kept_free();
}

static const char *policy_problem(int error)
{
	switch (-error) {
	case ENOENT:
		return "the hook did not run: is the line 'action-script …/externalize-hook' in the config file?";
	case ESTALE:
		return "the policy in the image directory is that of another dump";
	case EBADMSG:
		return "the policy file is damaged";
	default:
		return strerror(-error);
	}
}

static int learn(int fd, uint32_t ino, struct ez_seen *seen)
{
	struct sockaddr_un addr = { 0 };
	struct ucred cred;
	socklen_t len = sizeof(seen->type);

	seen->magic = EZ_SEEN_MAGIC;
	seen->ino = ino;
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &seen->type, &len))
		return -errno;
	len = sizeof(cred);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return -errno;
	seen->server_pid = cred.pid;
	seen->server_uid = cred.uid;
	seen->server_gid = cred.gid;
	len = sizeof(addr);
	if (getpeername(fd, (void *)&addr, &len))
		return errno == ENOTCONN ? 0 : -errno;
	if (len > offsetof(struct sockaddr_un, sun_path)) {
		seen->peer_len = len - offsetof(struct sockaddr_un, sun_path);
		if (seen->peer_len > EZ_MAX_NAME)
			seen->peer_len = EZ_MAX_NAME;
		memcpy(seen->peer, addr.sun_path, seen->peer_len);
	}
	return 0;
}

static int append_seen(const struct ez_seen *seen)
{
	ssize_t n;
	int fd;

	fd = openat(image_dir(), EZ_SEEN_FILE, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	n = write(fd, seen, sizeof(*seen));
	if (close(fd) || n < 0)
		return -errno;
	return n == (ssize_t)sizeof(*seen) ? 0 : -ENOSPC;
}

static int dump_unix_sk(int fd, int ino)
{
	const struct ez_policy_entry *entry;
	struct ez_seen seen = { 0 };
	int ret;

	if (policy_error) {
		ez_log(EZ_LOG_ERROR, "external unix socket %d, but no policy for it: %s\n", ino,
		       policy_problem(policy_error));
		return -1;
	}
	entry = ez_policy_find(&policy, ino);
	if (entry && entry->refuse) {
		ez_log(EZ_LOG_ERROR, "external unix socket %d is refused by the plan\n", ino);
		return -1;
	}
	ret = learn(fd, ino, &seen);
	if (!ret) {
		seen.crc = ez_crc32(0, &seen, sizeof(seen));
		ret = append_seen(&seen);
	}
	if (ret) {
		ez_log(EZ_LOG_ERROR, "external unix socket %d: can't note it: %s\n", ino, strerror(-ret));
		return -1;
	}
	ez_log(EZ_LOG_INFO, "external unix socket %d accepted\n", ino);
	return 0;
}

static int restore_kept(const struct ez_kept *kept)
{
	int fd, ret;

	ret = holding_error ? holding_error : ez_kept_get(&holding, kept, &fd);
	if (ret == -ENOENT && kept->flags & EZ_REC_HANGUP) {
		ez_log(EZ_LOG_WARN, "socket %u: its holder is gone, it is hung up\n", kept->ino);
		ret = ez_hung_up(kept->type, &fd);
	}
	if (!ret)
		return fd;
	ez_log(EZ_LOG_ERROR, "socket %u was kept open by a holder, which does not give it back: %s\n", kept->ino,
	       strerror(-ret));
	return -1;
}

static int restore_unix_sk(int ino)
{
	const struct ez_kept *kept = holding.data ? ez_kept_find(&holding, ino) : NULL;
	const struct ez_restore *rec;
	int fd;

	if (kept)
		return restore_kept(kept);
	if (records_error) {
		ez_log(EZ_LOG_ERROR, "socket %d: can't use %s in the image directory: %s\n", ino, EZ_RESTORE_FILE,
		       records_error == -EBADMSG ? "it is damaged" : strerror(-records_error));
		return -1;
	}
	rec = ez_restore_find(&records, ino);
	if (!rec) {
		ez_log(EZ_LOG_ERROR, "socket %d: no record of it in %s: not dumped with this hook?\n", ino,
		       EZ_RESTORE_FILE);
		return -1;
	}
	return ez_reconnect(rec, &fd) ? -1 : fd;
}

__attribute__((visibility("default"))) struct ez_criu_plugin CR_PLUGIN_DESC = {
	.name = "externalizer",
	.init = plugin_init,
	.exit = plugin_exit,
	.version = EZ_CRIU_PLUGIN_VERSION,
	.max_hooks = EZ_CRIU_HOOKS_USED,
	.hooks = {
		[EZ_CRIU_HOOK_DUMP_UNIX_SK] = dump_unix_sk,
		[EZ_CRIU_HOOK_RESTORE_UNIX_SK] = restore_unix_sk,
	},
};
