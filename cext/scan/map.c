// SPDX-License-Identifier: GPL-2.0-only
/* An open-addressing hash table from non-zero 64 bit keys to 64 bit values. Nothing is ever removed. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "scan.h"

#define FIRST_SLOTS 64

/* Keys are inode numbers and pids, often consecutive: the multiplication spreads them. */
static size_t home(const struct ez_map *map, uint64_t key)
{
	return (size_t)((key * 0x9e3779b97f4a7c15u) >> 32) & (map->size - 1);
}

static struct ez_map_slot *find(const struct ez_map *map, uint64_t key)
{
	size_t i = home(map, key);

	while (map->slots[i].key && map->slots[i].key != key)
		i = (i + 1) & (map->size - 1);
	return &map->slots[i];
}

static int grow(struct ez_map *map)
{
	struct ez_map bigger = {.used = map->used};
	size_t i;

	bigger.size = map->size ? map->size * 2 : FIRST_SLOTS;
	if (bigger.size < map->size)
		return -ENOMEM;
	bigger.slots = calloc(bigger.size, sizeof(*bigger.slots));
	if (!bigger.slots)
		return -ENOMEM;
	for (i = 0; i < map->size; i++) {
		if (map->slots[i].key)
			*find(&bigger, map->slots[i].key) = map->slots[i];
	}
	free(map->slots);
	*map = bigger;
	return 0;
}

int ez_map_put(struct ez_map *map, uint64_t key, uint64_t value)
{
	struct ez_map_slot *slot;
	int ret;

	if (!key)
		return -EINVAL;
	/* At most three quarters full, so that every search ends soon. */
	if (map->used >= map->size / 4 * 3) {
		ret = grow(map);
		if (ret)
			return ret;
	}
	slot = find(map, key);
	if (!slot->key)
		map->used++;
	*slot = (struct ez_map_slot){key, value};
	return 0;
}

const uint64_t *ez_map_get(const struct ez_map *map, uint64_t key)
{
	const struct ez_map_slot *slot;

	if (!key || !map->size)
		return NULL;
	slot = find(map, key);
	return slot->key ? &slot->value : NULL;
}

void ez_map_clear(struct ez_map *map)
{
	if (map->size)
		memset(map->slots, 0, map->size * sizeof(*map->slots));
	map->used = 0;
}

void ez_map_free(struct ez_map *map)
{
	free(map->slots);
	*map = (struct ez_map){0};
}
