/*
 * A libnvidia-ml of our own for tests. It reads its state at every call from the
 * file that the environment variable FAKE_NVML_STATE names: lines "KEY VALUE".
 *
 *   init R          return code of nvmlInit (0 is success)
 *   count N         number of GPUs
 *   hang FIFO       a call on a device waits until FIFO was opened and closed for writing
 *   N.uuid, N.name  texts of GPU N
 *   N.util 55       a figure of GPU N; one that is not there is "not supported"
 *   N.util.return R return code of one call
 *   N.return R      return code of every call on GPU N
 *
 * Built with -DOLD it has only what old drivers have, with -DBARE no optional
 * symbol, with -DBROKEN it lacks one that nobody can do without.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3 };

static int users; /* nvmlInit less nvmlShutdown */
static char devices[64]; /* the address of one is its handle */

/* lookup copies the value of a key into out and returns whether it is there. */
static int lookup(const char *key, char *out, size_t size) {
	char line[512];
	size_t n = strlen(key);
	const char *path = getenv("FAKE_NVML_STATE");
	FILE *f = path ? fopen(path, "r") : NULL;
	int found = 0;
	while (f && !found && fgets(line, sizeof line, f)) {
		if (strncmp(line, key, n) == 0 && line[n] == ' ') {
			line[strcspn(line, "\n")] = 0;
			snprintf(out, size, "%s", line + n + 1);
			found = 1;
		}
	}
	if (f)
		fclose(f);
	return found;
}

static unsigned long long number(const char *key, unsigned long long otherwise) {
	char text[512];
	return lookup(key, text, sizeof text) ? strtoull(text, NULL, 0) : otherwise;
}

static void hang(const char *fifo) {
	char c;
	int f = open(fifo, O_RDONLY);
	while (f >= 0 && read(f, &c, 1) > 0)
		;
	close(f);
}

/* begin is what every call on a device does first. */
static int begin(void *device, const char *what, char *key) {
	long i = (char *)device - devices;
	char named[300];
	if (users == 0)
		return UNINITIALIZED;
	if (lookup("hang", named, sizeof named))
		hang(named);
	if (i < 0 || i >= (long)number("count", 0))
		return INVALID_ARGUMENT;
	snprintf(named, sizeof named, "%ld.return", i);
	int code = (int)number(named, SUCCESS);
	if (code != SUCCESS)
		return code;
	snprintf(key, 256, "%ld.%s", i, what);
	snprintf(named, sizeof named, "%s.return", key);
	return (int)number(named, SUCCESS);
}

static int figure(void *device, const char *what, unsigned long long *out) {
	char key[256], text[512];
	int code = begin(device, what, key);
	if (code != SUCCESS)
		return code;
	if (!lookup(key, text, sizeof text))
		return NOT_SUPPORTED;
	*out = strtoull(text, NULL, 0);
	return SUCCESS;
}

static int figure32(void *device, const char *what, unsigned *out) {
	unsigned long long v;
	int code = figure(device, what, &v);
	if (code == SUCCESS)
		*out = (unsigned)v;
	return code;
}

static int text(void *device, const char *what, char *out, unsigned size) {
	char key[256];
	int code = begin(device, what, key);
	if (code == SUCCESS && !lookup(key, out, size))
		return NOT_SUPPORTED;
	return code;
}

int nvmlShutdown(void) {
	if (users == 0)
		return UNINITIALIZED;
	users--;
	return SUCCESS;
}

static int init(void) {
	int code = (int)number("init", SUCCESS);
	if (code == SUCCESS)
		users++;
	return code;
}

const char *nvmlErrorString(int code) {
	switch (code) {
	case SUCCESS: return "Success";
	case NOT_SUPPORTED: return "Not Supported";
	case 9: return "Driver Not Loaded";
	case 15: return "GPU is lost";
	default: return "Unknown Error";
	}
}

static int count(unsigned *n) {
	if (users == 0)
		return UNINITIALIZED;
	*n = (unsigned)number("count", 0);
	return SUCCESS;
}

static int handle(unsigned i, void **device) {
	char key[256];
	*device = &devices[i];
	return begin(*device, "handle", key);
}

int nvmlDeviceGetUUID(void *d, char *out, unsigned size) { return text(d, "uuid", out, size); }

#if defined(OLD) || defined(BARE)
int nvmlInit(void) { return init(); }
int nvmlDeviceGetCount(unsigned *n) { return count(n); }
int nvmlDeviceGetHandleByIndex(unsigned i, void **d) { return handle(i, d); }
#else
int nvmlInit_v2(void) { return init(); }
#ifndef BROKEN
int nvmlDeviceGetCount_v2(unsigned *n) { return count(n); }
#endif
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { return handle(i, d); }
#endif

#ifndef BARE
int nvmlSystemGetDriverVersion(char *out, unsigned size) { return lookup("driver", out, size) ? SUCCESS : NOT_SUPPORTED; }
int nvmlDeviceGetName(void *d, char *out, unsigned size) { return text(d, "name", out, size); }

struct utilization { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(void *d, struct utilization *out) {
	out->memory = 0;
	return figure32(d, "util", &out->gpu);
}

struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(void *d, struct memory *out) {
	unsigned long long reserved = 0;
	int code = figure(d, "memory.total", &out->total);
	if (code == SUCCESS)
		code = figure(d, "memory.used", &out->used);
	figure(d, "memory.reserved", &reserved);
	out->used += reserved; /* as version 1 counts */
	out->free = out->total - out->used;
	return code;
}

int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *out) { return sensor ? INVALID_ARGUMENT : figure32(d, "temperature", out); }
int nvmlDeviceGetPowerUsage(void *d, unsigned *out) { return figure32(d, "power", out); }
int nvmlDeviceGetClockInfo(void *d, int clock, unsigned *out) { return clock == 1 ? figure32(d, "clock", out) : INVALID_ARGUMENT; }
int nvmlDeviceGetMaxClockInfo(void *d, int clock, unsigned *out) { return clock == 1 ? figure32(d, "maxclock", out) : INVALID_ARGUMENT; }
int nvmlDeviceGetTotalEccErrors(void *d, int kind, int counter, unsigned long long *out) {
	return kind == 1 && counter == 0 ? figure(d, "ecc", out) : INVALID_ARGUMENT;
}

#ifdef OLD
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *out) { return figure(d, "reasons", out); }
#else
int nvmlDeviceGetCurrentClocksEventReasons(void *d, unsigned long long *out) { return figure(d, "reasons", out); }

struct memory2 { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(void *d, struct memory2 *out) {
	if (out->version != (sizeof *out | 2u << 24))
		return 25;
	int code = figure(d, "memory.total", &out->total);
	if (code == SUCCESS)
		code = figure(d, "memory.used", &out->used);
	out->reserved = 0;
	figure(d, "memory.reserved", &out->reserved);
	out->free = out->total - out->used - out->reserved;
	return code;
}
#endif
#endif
