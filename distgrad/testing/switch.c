// A switch between TAP devices that holds every packet back, for kernels without netem.
//
//     switch PORTS DELAY_US RATE_MBIT
//
// Makes the devices port1 .. portN in the present network namespace, to be moved into those of the
// hosts, and prints "ready". A packet leaves DELAY_US after it came; each port sends RATE_MBIT at
// most (0: no limit) and drops what would wait behind 4 MiB.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { MOST_PORTS = 64, FRAME = 1 << 16, QUEUE = 4 << 20, BATCH = 64 };

struct packet {
  struct packet *next;
  long long due;
  int length;
  unsigned char bytes[];
};

struct port {
  struct packet *first, **last;
  long long free_at, queued;
  unsigned char address[6];
  int known;
};

static struct port ports[MOST_PORTS];
static struct pollfd devices[MOST_PORTS];
static int count;
static double delay_ns, ns_per_byte;

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int open_device(int number) {
  struct ifreq request;
  memset(&request, 0, sizeof request);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  snprintf(request.ifr_name, sizeof request.ifr_name, "port%d", number);
  int file = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  if (file < 0 || ioctl(file, TUNSETIFF, &request) < 0) {
    perror("switch");
    exit(1);
  }
  return file;
}

// Writes what is due and returns when the next packet is.
static long long deliver(void) {
  long long time = now(), next = time + 1000000000LL;
  for (int p = 0; p < count; p++) {
    struct port *port = &ports[p];
    while (port->first && port->first->due <= time) {
      struct packet *packet = port->first;
      if (write(devices[p].fd, packet->bytes, packet->length) < 0) { /* the device is down */ }
      port->queued -= packet->length;
      port->first = packet->next;
      if (!port->first) port->last = &port->first;
      free(packet);
    }
    if (port->first && port->first->due < next) next = port->first->due;
  }
  return next;
}

static void enqueue(struct port *port, const unsigned char *bytes, int length) {
  if (port->queued > QUEUE) return;
  long long out = now();
  if (port->free_at > out) out = port->free_at;
  out += (long long)(length * ns_per_byte);
  port->free_at = out;
  struct packet *packet = malloc(sizeof *packet + length);
  packet->next = 0;
  packet->due = out + (long long)delay_ns;
  packet->length = length;
  memcpy(packet->bytes, bytes, length);
  *port->last = packet;
  port->last = &packet->next;
  port->queued += length;
}

// Takes packets from a port and puts each in the queue of its receiver, or of all.
static void take_from(int from) {
  unsigned char bytes[FRAME];
  for (int k = 0; k < BATCH; k++) {
    int length = read(devices[from].fd, bytes, sizeof bytes), to = -1;
    if (length <= 0) return;
    memcpy(ports[from].address, bytes + 6, 6);
    ports[from].known = 1;
    for (int p = 0; p < count && !(bytes[0] & 1); p++)
      if (ports[p].known && !memcmp(ports[p].address, bytes, 6)) to = p;
    for (int p = 0; p < count; p++)
      if (p != from && (to < 0 || p == to)) enqueue(&ports[p], bytes, length);
  }
}

int main(int arguments, char **words) {
  if (arguments != 4 || (count = atoi(words[1])) < 1 || count > MOST_PORTS) {
    fprintf(stderr, "usage: switch PORTS DELAY_US RATE_MBIT\n");
    return 2;
  }
  delay_ns = atof(words[2]) * 1e3;
  ns_per_byte = atof(words[3]) > 0 ? 8e3 / atof(words[3]) : 0;
  for (int p = 0; p < count; p++) {
    devices[p].fd = open_device(p + 1);
    devices[p].events = POLLIN;
    ports[p].last = &ports[p].first;
  }
  puts("ready");
  fflush(stdout);
  for (;;) {
    long long wait = deliver() - now();
    if (wait < 0) wait = 0;
    struct timespec time = {wait / 1000000000LL, wait % 1000000000LL};
    if (ppoll(devices, count, &time, 0) <= 0) continue;
    for (int p = 0; p < count; p++)
      if (devices[p].revents & POLLIN) take_from(p);
  }
}
