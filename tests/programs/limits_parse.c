// SPDX-License-Identifier: GPL-2.0-only
/* Reads a limits file from stdin and prints what the shim's parser makes of it: one line per resource. */
#include "../../cext/shim/rlimits.c"

#include <stdlib.h>

int main(void)
{
	size_t size;
	char *text = malloc(1 << 16); /* its own block: a sanitizer sees a read past the end */

	if (!text)
		return 2;
	size = fread(text, 1, 1 << 16, stdin);
	text = realloc(text, size ? size : 1);
	if (!text)
		return 2;
	for (int resource = 0; resource < (int)LIMIT_COUNT; resource++) {
		struct rlimit64 limit = { 0, 0 };
		const int ret = parse_limits(text, size, resource, &limit);

		printf("%d %llu %llu\n", ret, (unsigned long long)limit.rlim_cur,
		       (unsigned long long)limit.rlim_max);
	}
	free(text);
	return 0;
}
