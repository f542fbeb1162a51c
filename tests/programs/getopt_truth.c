// SPDX-License-Identifier: GPL-2.0-only
/*
 * A preload for criu that tells what criu's option file parser really made of a file.
 *
 * criu gives every parsed file to getopt_long() as an argv of its own, before that of the command line. The
 * first call is intercepted: its argv and what the real getopt_long() makes of it go to descriptor
 * GETOPT_TRUTH_FD, and the process ends, so that no option takes effect.
 *
 * Records: type byte, length (uint32, native), bytes.
 *   D name\0 has_arg digit     an option that criu declares
 *   A word                     one element of argv
 *   O name                     an option found; followed by V optarg if it has one
 *   ? -                        getopt_long() reported an error
 *   N word                     a left-over word that is no option
 *   E                          the end
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <getopt.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int (*getopt_long_fn)(int, char *const[], const char *, const struct option *, int *);

static void write_all(int fd, const void *data, size_t len)
{
	const char *p = data;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n <= 0)
			_exit(99);
		p += n;
		len -= (size_t)n;
	}
}

static void record(int fd, char type, const char *data, size_t len)
{
	uint32_t size = (uint32_t)len;

	write_all(fd, &type, 1);
	write_all(fd, &size, sizeof(size));
	write_all(fd, data, len);
}

static void declare(int fd, const struct option *opts)
{
	char text[256];

	for (; opts->name; opts++) {
		size_t len = strlen(opts->name);

		if (len + 2 > sizeof(text))
			_exit(98);
		memcpy(text, opts->name, len + 1);
		text[len + 1] = (char)('0' + opts->has_arg);
		record(fd, 'D', text, len + 2);
	}
}

int getopt_long(int argc, char *const argv[], const char *short_opts, const struct option *opts, int *index)
{
	getopt_long_fn real = (getopt_long_fn)dlsym(RTLD_NEXT, "getopt_long");
	const char *where = getenv("GETOPT_TRUTH_FD");
	int fd, opt;

	(void)index;
	if (!where || !real)
		_exit(97);
	fd = atoi(where);
	declare(fd, opts);
	for (int i = 1; i < argc; i++)
		record(fd, 'A', argv[i], strlen(argv[i]));
	for (;;) {
		int which = -1;

		optarg = NULL;
		opt = real(argc, argv, short_opts, opts, &which);
		if (opt == -1)
			break;
		if (opt == '?' || which < 0) {
			record(fd, '?', "", 0);
			continue;
		}
		record(fd, 'O', opts[which].name, strlen(opts[which].name));
		if (optarg)
			record(fd, 'V', optarg, strlen(optarg));
	}
	for (int i = optind; i < argc; i++)
		record(fd, 'N', argv[i], strlen(argv[i]));
	record(fd, 'E', "", 0);
	_exit(0);
}
