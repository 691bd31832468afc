/* Attention over packed documents: the problem, as train.py lays it out, and what both forms of it share. */
#ifndef AGARTHA_ATTENTION_H
#define AGARTHA_ATTENTION_H

#include "common.h"

/* Strides are in elements; head strides may be 0 (a key shared by all heads). */
typedef struct {
  int64_t batch, tokens, heads, key_heads, nope, rope, value;
  int64_t type, interleaved;
  float scale;
  const void *q, *k_nope, *k_rope, *v;
  int64_t q_row, q_head, kn_row, kn_head, kr_row, kr_head, v_row, v_head;
  const float *cos_sin;    /* [batch * tokens, rope] */
  const int32_t *start;    /* [batch * tokens] or NULL */
  void *out;               /* [batch * tokens, heads, value] */
  float *lse;              /* [batch * tokens, heads], of the scaled scores */
  const void *d_out;
  void *d_q, *d_v, *d_kn, *d_kr; /* contiguous: [.., heads, nope+rope], [.., key_heads, value], [.., key_heads, nope], [.., k_rope heads, rope] */
} Attention;

#define MAX_ROPE 1024

/* Rotation as x * table[d] + partner(x) * table[rope + d], the numbers staying where they lie: scores do not change if queries
   and keys are permuted alike. The partner is the other number of the pair. way: 1, or -1 to turn back. */
INLINE void turn(void *to, int to_type, const void *from, int from_type, const float *table, int64_t rope, int interleaved, float way) {
  if (rope % 16 == 0 && (interleaved || rope == 16)) {
    ivec neighbour = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}, across = {8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7};
    for (int64_t d = 0; d < rope; d += 16) {
      vec x = load16(from, d, from_type), y = __builtin_shuffle(x, interleaved ? neighbour : across);
      store16(to, d, x * *(const vec *)(table + d) + y * *(const vec *)(table + rope + d) * way, to_type);
    }
    return;
  }
  float x[MAX_ROPE], y[MAX_ROPE];
  int64_t half = rope / 2;
  load(x, from, rope, from_type);
  if (interleaved) for (int64_t i = 0; i < half; i++) y[2 * i] = x[2 * i + 1], y[2 * i + 1] = x[2 * i];
  else for (int64_t i = 0; i < half; i++) y[i] = x[half + i], y[half + i] = x[i];
  for (int64_t d = 0; d < rope; d++) x[d] = x[d] * table[d] + way * y[d] * table[rope + d];
  store(to, x, rope, to_type);
}

static void fill_tables(float *table, const float *cos_sin, int64_t rows, int64_t rope, int interleaved) { /* [rows, 2 * rope] */
  int64_t half = rope / 2;
  for (int64_t i = 0; i < rows; i++, table += 2 * rope, cos_sin += rope)
    for (int64_t j = 0; j < half; j++) {
      int64_t a = interleaved ? 2 * j : j, b = interleaved ? 2 * j + 1 : half + j;
      table[a] = table[b] = cos_sin[j];
      table[rope + a] = -cos_sin[half + j], table[rope + b] = cos_sin[half + j];
    }
}

INLINE int64_t document_end(const Attention *a, int64_t row, int64_t first) {
  int64_t end = first + 1;
  if (!a->start) return a->tokens;
  const int32_t *start = a->start + row * a->tokens;
  while (end < a->tokens && start[end] == start[first]) end++;
  return end;
}

#endif
