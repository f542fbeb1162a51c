/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef EXTERNALIZER_IDS_H
#define EXTERNALIZER_IDS_H

#include "record.h"
#include <sys/types.h>

/* Of the calling task; `groups` is its holder's to free. */
struct ez_ids {
	uid_t ruid, euid, suid;
	gid_t rgid, egid, sgid;
	int dumpable;
	int ngroups;
	gid_t *groups;
};

/* 0 or -errno. A failed way back leaves the task with other rights than it had: it must not go on. */
int ez_ids_get(struct ez_ids *ids);
int ez_ids_switch(const struct ez_ids *old, const struct ez_restore *rec);
int ez_ids_revert(const struct ez_ids *old);

#endif
