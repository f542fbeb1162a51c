// SPDX-License-Identifier: GPL-2.0-only
/*
 * A program whose threads open and close connections all the time, and check each answer: churn STATE SERVER THREADS
 *
 * A thread connects to the unix socket SERVER, sends a request {thread, flags, number}, reads the answer, which must be
 * the same, waits some milliseconds with the connection open, closes it, and goes on with the next number. With
 * LEAVES_MORE the server sends more than the answer, which stays unread. A connection that ends early (EOF, EPIPE,
 * ECONNRESET: what becomes of a hung-up socket) is no error: the same number is asked for again.
 *
 * STATE is a file that this program makes, one `struct state` a thread, mapped shared: a test reads it at any time.
 * `done` in it must at all times be what the thread has in its own memory, or a restore has mixed two moments.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LEAVES_MORE 1u
#define PATIENCE_S 20

/* All counts; `wrong` is the line below of the first thing that must never be, or 0. */
struct state {
	volatile uint64_t done;
	volatile uint64_t hung_up;
	volatile uint64_t wrong;
	volatile uint64_t error; /* errno there */
};

struct request {
	uint32_t thread;
	uint32_t flags;
	uint64_t number;
};

static struct sockaddr_un server = { .sun_family = AF_UNIX };
static struct state *states;

static void sleep_ms(long ms)
{
	struct timespec left = { .tv_nsec = ms * 1000000 };

	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

/* Stops this thread for good, so that the test sees the first error and no progress. */
#define WRONG(state) \
	do { \
		(state)->error = errno; \
		(state)->wrong = __LINE__; \
		for (;;) \
			pause(); \
	} while (0)

static int is_hang_up(ssize_t n)
{
	return !n || (n < 0 && (errno == EPIPE || errno == ECONNRESET));
}

static ssize_t receive(int fd, void *buffer, size_t size)
{
	ssize_t n;

	/* A stop and a restore interrupt a call with a timeout: signal(7). */
	do
		n = recv(fd, buffer, size, MSG_WAITALL);
	while (n < 0 && errno == EINTR);
	return n;
}

static int connected(struct state *state)
{
	const struct timeval patience = { .tv_sec = PATIENCE_S };
	int fd, ret;

	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		WRONG(state);
	do
		ret = connect(fd, (void *)&server, sizeof(server));
	while (ret && errno == EINTR);
	if (ret)
		WRONG(state);
	return fd;
}

/* One connection. Returns 1 if the request was answered, 0 if the connection ended before. */
static int one(struct state *state, const struct request *request)
{
	struct request answer;
	int fd, answered = 0;
	ssize_t n;

	fd = connected(state);
	if (request->number % 5 == 3)
		sleep_ms(5); /* open and idle before the request */
	do
		n = send(fd, request, sizeof(*request), MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n == sizeof(*request)) {
		n = receive(fd, &answer, sizeof(answer));
		if (n == sizeof(answer)) {
			if (memcmp(request, &answer, sizeof(answer)))
				WRONG(state);
			answered = 1;
			sleep_ms(5); /* open and idle after it, with more unread or not */
		} else if (!is_hang_up(n)) {
			WRONG(state);
		}
	} else if (!is_hang_up(n)) {
		WRONG(state);
	}
	if (close(fd))
		WRONG(state);
	return answered;
}

static void *run(void *argument)
{
	struct state *state = argument;
	struct request request = { .thread = state - states };

	for (;;) {
		request.flags = request.number % 3 ? 0 : LEAVES_MORE;
		if (one(state, &request)) {
			if (state->done != request.number)
				WRONG(state);
			state->done = ++request.number;
		} else {
			state->hung_up++;
		}
		sleep_ms(5);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	int fd, i, n;

	if (argc != 4 || strlen(argv[2]) >= sizeof(server.sun_path))
		return 2;
	n = atoi(argv[3]);
	strcpy(server.sun_path, argv[2]);
	fd = open(argv[1], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || n < 1 || ftruncate(fd, n * sizeof(struct state)))
		return 1;
	states = mmap(NULL, n * sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (states == MAP_FAILED || close(fd))
		return 1;
	for (i = 0; i < n; i++)
		if (pthread_create(&thread, NULL, run, &states[i]))
			return 1;
	for (;;)
		pause();
}
