/* Tokens to their experts and back. slots [tokens, choices] says in which row of the experts' common input a token's choice
   stands; rows that only fill a segment up to its padded end are zero, forward and backward. */
#include "common.h"

/* chosen [tokens * choices] -> its slots, in the order of experts and then of tokens, and the segments' ends [experts]. */
void place_by_expert(const int64_t *chosen, int64_t pairs, int64_t experts, int64_t multiple, int64_t *slots, int64_t *ends) {
  int64_t next[experts];
  memset(ends, 0, experts * 8);
  for (int64_t p = 0; p < pairs; p++) ends[chosen[p]]++;
  for (int64_t e = 0, at = 0; e < experts; e++) {
    next[e] = at;
    ends[e] = at += (ends[e] + multiple - 1) / multiple * multiple;
  }
  for (int64_t p = 0; p < pairs; p++) slots[p] = next[chosen[p]]++;
}

/* Zeros in the rows of `out` that no slot names. */
static void clear_unused(void *out, const int64_t *slots, int64_t pairs, int64_t rows, int64_t bytes) {
  char *used = calloc(rows, 1);
  if (!used) { memset(out, 0, rows * bytes); return; }
  for (int64_t p = 0; p < pairs; p++) used[slots[p]] = 1;
  for (int64_t r = 0; r < rows; r++)
    if (!used[r]) memset((char *)out + r * bytes, 0, bytes);
  free(used);
}

/* x [tokens, width] -> out [rows, width] */
void to_experts(const void *x, const int64_t *slots, void *out, int64_t tokens, int64_t choices, int64_t rows, int64_t width, int type) {
  int64_t bytes = width * (type == FLOAT32 ? 4 : 2);
  clear_unused(out, slots, tokens * choices, rows, bytes);
#pragma omp parallel for
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t k = 0; k < choices; k++) memcpy((char *)out + slots[t * choices + k] * bytes, (const char *)x + t * bytes, bytes);
}

/* out [tokens, width] = sum over choices of gates [tokens, choices] (1 where NULL) times their rows of y */
void from_experts(const void *y, const float *gates, const int64_t *slots, void *out, int64_t tokens, int64_t choices, int64_t width,
                  int type) {
#pragma omp parallel for
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t d = 0; d < width; d += 16) {
      vec total = splat(0);
      for (int64_t k = 0; k < choices; k++) {
        vec row = load_some(y, slots[t * choices + k] * width + d, width - d, 0, type);
        total += row * (gates ? gates[t * choices + k] : 1);
      }
      store_some(out, t * width + d, total, width - d, type);
    }
}

/* The gradients of from_experts: of its rows, d_y [rows, width], and of its gates. */
void from_experts_backward(const void *y, const float *gates, const int64_t *slots, const void *d_out, void *d_y, float *d_gates,
                           int64_t tokens, int64_t choices, int64_t rows, int64_t width, int type) {
  clear_unused(d_y, slots, tokens * choices, rows, width * (type == FLOAT32 ? 4 : 2));
#pragma omp parallel for
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t k = 0; k < choices; k++) {
      int64_t slot = slots[t * choices + k];
      vec dot = splat(0);
      for (int64_t d = 0; d < width; d += 16) {
        int64_t n = width - d;
        vec grad = load_some(d_out, t * width + d, n, 0, type);
        dot += grad * load_some(y, slot * width + d, n, 0, type);
        store_some(d_y, slot * width + d, grad * gates[t * choices + k], n, type);
      }
      d_gates[t * choices + k] = sum_vec(dot);
    }
}
