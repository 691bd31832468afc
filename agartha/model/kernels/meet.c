/* Exchange between processes of one machine through memory that they share. Each puts a piece into its slot and announces it;
   all have announced the same turn before anyone reads. Slots alternate, so that whoever is ahead by a turn spoils nothing. */
#include "common.h"
#include <time.h>

typedef struct { uint64_t turn; char rest[56]; } Place; /* a cache line for each process */

INLINE char *slot(char *memory, int64_t ranks, int64_t rank, uint64_t turn, int64_t size) {
  return memory + PAD16(ranks) * sizeof(Place) + ((turn & 1) * ranks + rank) * size;
}

void meet_offer(char *memory, int64_t ranks, int64_t rank, uint64_t turn, int64_t size, const void *piece, int64_t bytes) {
  memcpy(slot(memory, ranks, rank, turn, size), piece, bytes);
  __atomic_store_n(&((Place *)memory)[rank].turn, turn, __ATOMIC_RELEASE);
}

/* 0 once everyone has offered this turn, 1 after about `seconds` without. */
int meet_wait(char *memory, int64_t ranks, uint64_t turn, double seconds) {
  struct timespec start, now, nap = {0, 30000};
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (int64_t rank = 0; rank < ranks; rank++)
    for (int64_t tries = 0; __atomic_load_n(&((Place *)memory)[rank].turn, __ATOMIC_ACQUIRE) < turn; tries++) {
      if (tries % 64) continue; /* the others mostly come within microseconds */
      clock_gettime(CLOCK_MONOTONIC, &now);
      double waited = now.tv_sec - start.tv_sec + (now.tv_nsec - start.tv_nsec) * 1e-9;
      if (waited > seconds) return 1;
      if (waited > 1e-4) nanosleep(&nap, NULL); /* whoever is late may want this processor */
    }
  return 0;
}

void meet_sum(char *memory, int64_t ranks, uint64_t turn, int64_t size, float *to, int64_t n) { /* in the order of ranks */
  for (int64_t i = 0; i < n; i += 16) {
    vec sum = splat(0);
    for (int64_t rank = 0; rank < ranks; rank++) sum += load_some(slot(memory, ranks, rank, turn, size), i, n - i, 0, FLOAT32);
    store_some(to, i, sum, n - i, FLOAT32);
  }
}

void meet_take(char *memory, int64_t ranks, int64_t rank, uint64_t turn, int64_t size, void *to, int64_t bytes) {
  memcpy(to, slot(memory, ranks, rank, turn, size), bytes);
}
