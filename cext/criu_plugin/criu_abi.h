/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The part of criu's plugin ABI that this plugin uses, in our own words.
 *
 * criu-plugin.h comes only with the criu package and differs between versions. The ABI itself is stable:
 * a descriptor of version 0.2 is read by every criu since 1.6. A test compares this file with the header
 * of the criu in use. max_hooks must not be larger than the running criu's own number of hooks ("Corrupted
 * plugin", and every dump fails), so it is the highest hook used here plus one.
 */
#ifndef EXTERNALIZER_CRIU_ABI_H
#define EXTERNALIZER_CRIU_ABI_H

enum {
	EZ_CRIU_HOOK_DUMP_UNIX_SK = 0,	  /* int (int fd, int ino) */
	EZ_CRIU_HOOK_RESTORE_UNIX_SK = 1, /* int (int ino), returns a descriptor */
	EZ_CRIU_HOOKS_USED = 2,
};

enum {
	EZ_CRIU_STAGE_DUMP = 0,
	EZ_CRIU_STAGE_PRE_DUMP = 1,
	EZ_CRIU_STAGE_RESTORE = 2,
};

#define EZ_CRIU_PLUGIN_VERSION ((0u << 16) + (2u << 8) + 0u)

struct ez_criu_plugin {
	const char *name;
	int (*init)(int stage);
	void (*exit)(int stage, int ret);
	unsigned int version;
	unsigned int max_hooks;
	void *hooks[EZ_CRIU_HOOKS_USED];
};

/* Exported by criu. Weak, so that a criu without one of them loads the plugin and gets a clear message. */
extern int criu_get_image_dir(void) __attribute__((weak));
extern int inherit_fd_add(int fd, char *key) __attribute__((weak));
extern int inherit_fd_lookup_id(char *key) __attribute__((weak));
extern void print_on_level(unsigned int level, const char *format, ...)
	__attribute__((weak, format(printf, 2, 3)));

enum { EZ_LOG_ERROR = 1, EZ_LOG_WARN = 2, EZ_LOG_INFO = 3 };

#endif
