// SPDX-License-Identifier: GPL-2.0-only
/* The restoring task takes the recorded credentials for the time of a connect, and its own back. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ids.h"
#include "plugin.h"

/* Raw system calls: the libc wrappers synchronise threads that don't exist here, by signals. */
int ez_ids_get(struct ez_ids *ids)
{
	if (syscall(SYS_getresuid, &ids->ruid, &ids->euid, &ids->suid) ||
	    syscall(SYS_getresgid, &ids->rgid, &ids->egid, &ids->sgid))
		return -errno;
	ids->dumpable = prctl(PR_GET_DUMPABLE);
	ids->ngroups = syscall(SYS_getgroups, 0, NULL);
	if (ids->ngroups < 0)
		return -errno;
	ids->groups = calloc(ids->ngroups + 1, sizeof(gid_t));
	if (!ids->groups)
		return -ENOMEM;
	if (syscall(SYS_getgroups, ids->ngroups, ids->groups) != ids->ngroups)
		return -EAGAIN;
	return 0;
}

/* In a user namespace with setgroups denied the list can't be set: fine only if it is right already. */
static int set_groups(const gid_t *groups, int count, const gid_t *have, int nhave)
{
	if (!syscall(SYS_setgroups, count, groups))
		return 0;
	if (errno == EPERM && count == nhave && !memcmp(groups, have, count * sizeof(gid_t)))
		return 0;
	return -errno;
}

int ez_ids_switch(const struct ez_ids *old, const struct ez_restore *rec)
{
	gid_t *groups = calloc(rec->groups_len + 1, sizeof(gid_t));
	int ret;

	if (!groups)
		return -ENOMEM;
	memcpy(groups, ez_restore_groups(rec), rec->groups_len * sizeof(gid_t));
	ret = set_groups(groups, rec->groups_len, old->groups, old->ngroups);
	free(groups);
	if (ret)
		return ret;
	/* Only the effective ids matter to SO_PEERCRED and to permission checks; the saved ones lead back. */
	if (syscall(SYS_setresgid, -1, rec->gid, -1) || syscall(SYS_setresuid, -1, rec->uid, -1))
		return -errno;
	return 0;
}

int ez_ids_revert(const struct ez_ids *old)
{
	struct ez_ids now = { 0 };
	int ret;

	if (syscall(SYS_setresuid, -1, old->euid, -1) || syscall(SYS_setresgid, -1, old->egid, -1))
		return -errno;
	ret = ez_ids_get(&now);
	if (!ret)
		ret = set_groups(old->groups, old->ngroups, now.groups, now.ngroups);
	free(now.groups);
	if (ret)
		return ret;
	memset(&now, 0, sizeof(now));
	ret = ez_ids_get(&now);
	if (!ret && (now.euid != old->euid || now.egid != old->egid || now.ngroups != old->ngroups ||
		     memcmp(now.groups, old->groups, old->ngroups * sizeof(gid_t))))
		ret = -EPERM;
	free(now.groups);
	/* A change of the effective uid makes a task undumpable (prctl(2)); criu needs it as it was. */
	if (!ret && old->dumpable == 1 && prctl(PR_SET_DUMPABLE, 1))
		ret = -errno;
	return ret;
}
