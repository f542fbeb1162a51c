// SPDX-License-Identifier: GPL-2.0-only
/*
 * Feeds damaged record files to the plugin's parser, under ASan and UBSan: a bad record is an error, never a
 * read outside of it. Usage: records_fuzz ROUNDS SEED FILE…, each FILE a valid one to be damaged.
 *
 * Every second round repairs size and checksum after the damage, so that the checks behind them are reached.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../cext/criu_plugin/plugin.h"

static uint64_t seed;

static uint32_t next(uint32_t below)
{
	/* xorshift64: the same rounds for the same seed on every machine. */
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return below ? (uint32_t)(seed >> 16) % below : 0;
}

static void repair(uint8_t *data, size_t size)
{
	struct ez_file_head head;

	if (size < sizeof(head))
		return;
	memcpy(&head, data, sizeof(head));
	head.size = (uint32_t)size;
	head.crc = 0;
	memcpy(data, &head, sizeof(head));
	head.crc = ez_crc32(0, data, size);
	memcpy(data, &head, sizeof(head));
}

/* Whatever was accepted is read as the plugin reads it, to its last byte. */
static unsigned int use(const struct ez_file *file, uint32_t magic)
{
	char text[4 * EZ_MAX_NAME + 8];
	unsigned int sum = 0;

	if (magic == EZ_HOLDING_MAGIC) {
		const struct ez_kept *kept = (const void *)(ez_holding_of(file) + 1);

		for (uint32_t i = 0; i < file->count; i++)
			if (!ez_kept_find(file, kept[i].ino))
				abort();
		return (unsigned int)(strlen(ez_holding_of(file)->id) + strlen(ez_holding_of(file)->digest) +
				      strlen(ez_holding_of(file)->boot_id));
	}
	if (magic == EZ_INHERIT_MAGIC) {
		for (const struct ez_inherit *rec = ez_inherit_next(file, NULL); rec; rec = ez_inherit_next(file, rec)) {
			for (uint32_t at = 0; at < rec->key_len; at++)
				sum += ez_inherit_key(rec)[at];
			for (uint32_t at = 0; at < rec->data_len; at++)
				sum += ez_inherit_data(rec)[at];
			sum += ez_printable(ez_inherit_path(rec), rec->path_len, text, sizeof(text))[0];
		}
		return sum;
	}
	if (magic == EZ_POLICY_MAGIC)
		return ez_policy_find(file, next(UINT32_MAX)) != NULL;
	for (uint32_t i = 0; i < file->count; i++) {
		const struct ez_restore *rec = (const void *)(file->data + file->index[i].offset);
		const struct ez_restore *found = ez_restore_find(file, rec->ino);

		if (!found || found->ino != rec->ino)
			abort();
		for (uint32_t at = 0; at < rec->groups_len * 4; at++)
			sum += ez_restore_groups(rec)[at];
		sum += ez_printable(ez_restore_name(rec), rec->name_len, text, sizeof(text))[0];
		sum += ez_printable(ez_restore_target(rec), rec->target_len, text, sizeof(text))[0];
	}
	return sum;
}

static int round_of(const uint8_t *valid, size_t size, uint32_t magic, int repaired)
{
	size_t len = next(4) ? size : next((uint32_t)size + 1);
	uint8_t *data = malloc(len ? len : 1);
	struct ez_file file;
	int ret;

	memcpy(data, valid, len);
	for (uint32_t hits = next(6); hits && len; hits--) {
		static const uint8_t edges[] = { 0, 1, 0x7f, 0x80, 0xff };

		data[next((uint32_t)len)] = next(2) ? edges[next(sizeof(edges))] : (uint8_t)next(256);
	}
	if (repaired)
		repair(data, len);
	ret = ez_file_parse(data, len, magic, &file);
	if (ret) {
		free(data);
		ez_file_free(&file); /* as the plugin does at its end: nothing may be left to free twice */
		return 0;
	}
	use(&file, magic);
	ez_file_free(&file);
	return 1;
}

int main(int argc, char **argv)
{
	long rounds = argc > 3 ? atol(argv[1]) : 0, accepted = 0, refused = 0;

	seed = argc > 3 ? strtoull(argv[2], NULL, 10) * 2654435761u + 1 : 1;
	for (int arg = 3; arg < argc; arg++) {
		FILE *in = fopen(argv[arg], "rb");
		uint8_t *valid = malloc(1 << 20);
		size_t size = in ? fread(valid, 1, 1 << 20, in) : 0;
		uint32_t magic;

		if (size < sizeof(struct ez_file_head))
			return 2;
		memcpy(&magic, valid, sizeof(magic));
		for (long i = 0; i < rounds; i++)
			round_of(valid, size, magic, i & 1) ? accepted++ : refused++;
		fclose(in);
		free(valid);
	}
	printf("%ld accepted, %ld refused\n", accepted, refused);
	return accepted && refused ? 0 : 3;
}
