/* Decoding on the CPU: one call takes S new tokens, each at (row, position), through the whole decoder and returns logits.
   Weights are packed once per update; in bfloat16 the products use the processor's pairwise dot product where it has one.
   Attention runs over a cache of keys [width][position] and values [position][width]; latent attention is weight-absorbed
   (DeepSeek-V2, arXiv:2405.04434 §2.1.2), so that it is one "key head" whose value is the front of its key. */
#include "common.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#define WIDE 32 /* outputs of one packed block */

typedef struct { int64_t in, out; const void *weight; const float *bias; } Linear;

typedef struct {
  Linear q, q_a, q_b, kv_a, k, v, o, gate_up, down, router;
  const float *input_norm, *post_norm, *q_a_norm, *kv_norm, *q_norm, *k_norm, *router_bias;
  const void *absorb_k, *absorb_v;     /* packed per head: [in = nope, out = latent], [in = latent, out = value] */
  const void *expert_up, *expert_down; /* packed per expert */
} Layer;

typedef struct {
  int64_t layers, hidden, vocab, heads, key_heads, nope, rope, value, latent, head_dim;
  int64_t experts, chosen, groups, top_groups, normalise, expert_width;
  int64_t type, interleaved, rows, length;
  float eps, scale, routed_scale;
  const float *embedding, *norm, *cos_sin; /* cos_sin [positions, rope width] */
  Linear head;
  const Layer *layer;
  void *keys, *values; /* [layers, rows, key_heads, key width, length], [layers, rows, key_heads, length, value width] */
} Model;

/* ---- packing and products ---------------------------------------------------------------------------------------- */

int64_t packed_bytes(int64_t in, int64_t out, int type) {
  int64_t blocks = (out + WIDE - 1) / WIDE;
  return blocks * WIDE * (in + (in & 1)) * (type == FLOAT32 ? 4 : 2);
}

/* [out, in] row-major floats with a row stride -> blocks of 32 outputs; bfloat16 keeps pairs of inputs together. */
void pack(const float *w, int64_t out_stride, int64_t in_stride, int64_t in, int64_t out, void *to, int type) {
  int64_t even = in + (in & 1);
  for (int64_t block = 0; block * WIDE < out; block++)
    for (int64_t k = 0; k < even; k++)
      for (int64_t j = 0; j < WIDE; j++) {
        int64_t o = block * WIDE + j;
        float value = o < out && k < in ? w[o * out_stride + k * in_stride] : 0;
        if (type == FLOAT32) ((float *)to)[(block * even + k) * WIDE + j] = value;
        else ((bf16 *)to)[(block * even + (k & ~(int64_t)1)) * WIDE + 2 * j + (k & 1)] = to_bf16(value);
      }
}

INLINE vec dot_pairs(vec acc, const uint32_t *a, ivec w) {
#if defined(__AVX512BF16__)
  return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(*a), (__m512bh)w);
#else
  acc += from_bf16(*a & 0xffff) * (vec)(w << 16);
  return acc + from_bf16(*a >> 16) * (vec)(w & (int32_t)0xffff0000);
#endif
}

#define ROWS(R, NB)                                                                                              \
  INLINE void rows_##R##_##NB(int64_t even, const void *x, const void *w, float *y, int64_t ldy, int64_t left,   \
                              const float *bias, int type) {                                                     \
    vec acc[R][2 * NB];                                                                                          \
    for (int r = 0; r < R; r++)                                                                                  \
      for (int j = 0; j < 2 * NB; j++) acc[r][j] = splat(0);                                                     \
    if (type == FLOAT32) {                                                                                       \
      for (int64_t k = 0; k < even; k++)                                                                         \
        for (int b = 0; b < NB; b++) {                                                                           \
          const float *wk = (const float *)w + (b * even + k) * WIDE;                                            \
          vec w0 = *(const vec *)wk, w1 = *(const vec *)(wk + 16);                                               \
          for (int r = 0; r < R; r++) {                                                                          \
            float a = ((const float *)x)[r * even + k];                                                          \
            acc[r][2 * b] += a * w0, acc[r][2 * b + 1] += a * w1;                                                \
          }                                                                                                      \
        }                                                                                                        \
    } else {                                                                                                     \
      for (int64_t k = 0; k < even; k += 2)                                                                      \
        for (int b = 0; b < NB; b++) {                                                                           \
          const bf16 *wk = (const bf16 *)w + (b * even + k) * WIDE;                                              \
          ivec w0 = *(const ivec *)wk, w1 = *(const ivec *)(wk + 32);                                            \
          for (int r = 0; r < R; r++) {                                                                          \
            const uint32_t *a = (const uint32_t *)((const bf16 *)x + r * even + k);                              \
            acc[r][2 * b] = dot_pairs(acc[r][2 * b], a, w0), acc[r][2 * b + 1] = dot_pairs(acc[r][2 * b + 1], a, w1); \
          }                                                                                                      \
        }                                                                                                        \
    }                                                                                                            \
    for (int r = 0; r < R; r++)                                                                                  \
      for (int b = 0; b < NB; b++) {                                                                             \
        int64_t n = left - b * WIDE < WIDE ? left - b * WIDE : WIDE;                                             \
        float *to = y + r * ldy + b * WIDE, line[WIDE];                                                          \
        float *target = n == WIDE ? to : line;                                                                   \
        *(vec *)target = acc[r][2 * b], *(vec *)(target + 16) = acc[r][2 * b + 1];                               \
        if (n < WIDE) memcpy(to, line, n * 4);                                                                   \
        if (bias) for (int64_t j = 0; j < n; j++) to[j] += bias[b * WIDE + j];                                   \
      }                                                                                                          \
  }
ROWS(12, 1) ROWS(6, 1) ROWS(3, 1) ROWS(1, 1) ROWS(1, 4)

/* y[s] = W x[s] for S rows already converted to the weights' type. */
static void multiply(const void *weight, int64_t in, int64_t out, const float *bias, const void *x, int64_t S, float *y, int64_t ldy, int type) {
  int64_t even = in + (in & 1), size = type == FLOAT32 ? 4 : 2, blocks = (out + WIDE - 1) / WIDE;
#define AT(s) ((const char *)x + (s) * even * size)
#pragma omp parallel for schedule(static) if (S * out * in > 200000)
  for (int64_t first = 0; first < blocks; first += 4) {
    int64_t last = first + 4 < blocks ? first + 4 : blocks;
    if (S == 1 && last - first == 4) {
      rows_1_4(even, x, (const char *)weight + first * WIDE * even * size, y + first * WIDE, ldy, out - first * WIDE,
               bias ? bias + first * WIDE : NULL, type);
      continue;
    }
    for (int64_t b = first; b < last; b++) {
      const char *w = (const char *)weight + b * WIDE * even * size;
      int64_t left = out - b * WIDE, s = 0;
      const float *bb = bias ? bias + b * WIDE : NULL;
      float *to = y + b * WIDE;
      for (; s + 12 <= S; s += 12) rows_12_1(even, AT(s), w, to + s * ldy, ldy, left, bb, type);
      for (; s + 6 <= S; s += 6) rows_6_1(even, AT(s), w, to + s * ldy, ldy, left, bb, type);
      for (; s + 3 <= S; s += 3) rows_3_1(even, AT(s), w, to + s * ldy, ldy, left, bb, type);
      for (; s < S; s++) rows_1_1(even, AT(s), w, to + s * ldy, ldy, left, bb, type);
    }
  }
#undef AT
}

/* Rows of floats (chosen by `index` if given) into the weights' type, densely. */
static void convert(const float *x, int64_t ldx, const int32_t *index, int64_t S, int64_t in, void *to, int type) {
  int64_t even = in + (in & 1);
  for (int64_t s = 0; s < S; s++) {
    const float *from = x + (index ? index[s] : s) * ldx;
    if (type == FLOAT32) {
      memcpy((float *)to + s * even, from, in * 4);
      if (even > in) ((float *)to)[s * even + in] = 0;
    } else {
      bf16 *row = (bf16 *)to + s * even;
      for (int64_t k = 0; k < in; k++) row[k] = to_bf16(from[k]);
      if (even > in) row[in] = 0;
    }
  }
}

static void linear(const Linear *l, const float *x, int64_t ldx, int64_t S, float *y, int64_t ldy, void *line, int type) {
  convert(x, ldx, NULL, S, l->in, line, type);
  multiply(l->weight, l->in, l->out, l->bias, line, S, y, ldy, type);
}

static void norm(const float *x, int64_t ldx, const float *w, float *y, int64_t ldy, int64_t S, int64_t width, float eps) {
  for (int64_t s = 0; s < S; s++) {
    const float *from = x + s * ldx;
    float total = 0, *to = y + s * ldy;
    for (int64_t d = 0; d < width; d++) total += from[d] * from[d];
    float r = 1 / sqrtf(total / width + eps);
    for (int64_t d = 0; d < width; d++) to[d] = from[d] * r * w[d];
  }
}

static void rotate(float *x, const float *cs, int64_t rope, int interleaved) {
  float tmp[1024];
  int64_t half = rope / 2;
  for (int64_t i = 0; i < half; i++) {
    float a = interleaved ? x[2 * i] : x[i], b = interleaved ? x[2 * i + 1] : x[half + i];
    tmp[i] = a * cs[i] - b * cs[half + i];
    tmp[half + i] = b * cs[i] + a * cs[half + i];
  }
  memcpy(x, tmp, rope * 4);
}

static void swiglu(float *x, int64_t S, int64_t width) { /* [S, 2 width] -> the first halves, in place */
  for (int64_t s = 0; s < S; s++)
    for (int64_t d = 0; d < width; d += 16) {
      float *row = x + s * 2 * width, g[16] = {0}, u[16] = {0};
      int64_t n = width - d < 16 ? width - d : 16;
      memcpy(g, row + d, n * 4), memcpy(u, row + width + d, n * 4);
      vec gate = *(vec *)g;
      *(vec *)g = gate / (1.0f + exp_vec(-gate)) * *(vec *)u;
      memcpy(row + d, g, n * 4);
    }
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

INLINE void put(void *base, int64_t i, float x, int type) {
  if (type == FLOAT32) ((float *)base)[i] = x;
  else ((bf16 *)base)[i] = to_bf16(x);
}

#define HEADS 4 /* query heads that share a pass over the cache */

/* H query heads over one key head: q [H][ld], out [H][vw]; positions 0..n-1. */
INLINE void attend_heads(const int H, const float *q, int64_t ldq, const void *keys, const void *values, int64_t kw, int64_t vw,
                         int64_t length, int64_t n, float scale, float *scores, float *out, int64_t ldo, const int type) {
  int64_t padded = PAD16(n);
  for (int64_t j = 0; j < padded; j += 16) {
    vec acc[HEADS];
    for (int h = 0; h < H; h++) acc[h] = splat(0);
    for (int64_t c = 0; c < kw; c++) {
      vec k = load16(keys, c * length + j, type);
      for (int h = 0; h < H; h++) acc[h] += q[h * ldq + c] * k;
    }
    for (int h = 0; h < H; h++) *(vec *)(scores + h * length + j) = acc[h] * scale;
  }
  for (int h = 0; h < H; h++) {
    float *row = scores + h * length, peak = -INFINITY;
    for (int64_t j = n; j < padded; j++) row[j] = -INFINITY;
    vec top = splat(-INFINITY), total = splat(0);
    for (int64_t j = 0; j < padded; j += 16) top = max_vec(*(vec *)(row + j), top);
    for (int j = 0; j < 16; j++) peak = top[j] > peak ? top[j] : peak;
    for (int64_t j = 0; j < padded; j += 16) *(vec *)(row + j) = exp_vec(*(vec *)(row + j) - peak);
    for (int64_t j = n; j < padded; j++) row[j] = 0;
    for (int64_t j = 0; j < padded; j += 16) total += *(vec *)(row + j);
    float inverse = 1 / sum_vec(total);
    for (int64_t j = 0; j < padded; j += 16) *(vec *)(row + j) *= inverse;
  }
  for (int64_t c = 0; c < vw; c += 64) {
    int64_t vectors = (vw - c + 15) / 16 < 4 ? (vw - c + 15) / 16 : 4;
    vec acc[HEADS][4];
    for (int h = 0; h < H; h++)
      for (int i = 0; i < 4; i++) acc[h][i] = splat(0);
    if (vectors == 4) {
      for (int64_t j = 0; j < n; j++) {
        vec v[4];
        for (int i = 0; i < 4; i++) v[i] = load16(values, j * vw + c + 16 * i, type);
        for (int h = 0; h < H; h++)
          for (int i = 0; i < 4; i++) acc[h][i] += scores[h * length + j] * v[i];
      }
    } else {
      for (int64_t j = 0; j < n; j++)
        for (int i = 0; i < vectors; i++) {
          vec v = load16(values, j * vw + c + 16 * i, type);
          for (int h = 0; h < H; h++) acc[h][i] += scores[h * length + j] * v;
        }
    }
    for (int h = 0; h < H; h++)
      for (int i = 0; i < vectors; i++) *(vec *)(out + h * ldo + c + 16 * i) = acc[h][i];
  }
}

/* q [S, heads, kw] over the cache of one layer -> out [S, heads, vw]; kw is free, vw a multiple of 16. */
static int attend(const Model *m, int64_t layer, const float *q, int64_t kw, int64_t vw, const int64_t *rows, const int64_t *positions,
                  int64_t S, float *out) {
  int64_t size = m->type == FLOAT32 ? 4 : 2, repeats = m->heads / m->key_heads;
  int failed = 0;
#pragma omp parallel if (S > 1)
  {
    float *scores = aligned_alloc(64, PAD16(HEADS * m->length) * 4);
    if (!scores) failed = 1;
#pragma omp for schedule(dynamic, 4)
    for (int64_t s = 0; s < S; s++) {
      if (!scores) continue;
      for (int64_t h = 0; h < m->heads;) {
        int64_t kv = h / repeats, slab = ((layer * m->rows + rows[s]) * m->key_heads + kv) * m->length;
        const char *keys = (const char *)m->keys + slab * kw * size, *values = (const char *)m->values + slab * vw * size;
        const float *qh = q + (s * m->heads + h) * kw;
        float *oh = out + (s * m->heads + h) * vw;
        int64_t here = repeats - h % repeats, n = positions[s] + 1;
#define GO(H, T) attend_heads(H, qh, kw, keys, values, kw, vw, m->length, n, m->scale, scores, oh, vw, T)
        if (here >= 4) { if (m->type == FLOAT32) GO(4, FLOAT32); else GO(4, BFLOAT16); h += 4; }
        else if (here >= 2) { if (m->type == FLOAT32) GO(2, FLOAT32); else GO(2, BFLOAT16); h += 2; }
        else { if (m->type == FLOAT32) GO(1, FLOAT32); else GO(1, BFLOAT16); h += 1; }
#undef GO
      }
    }
    free(scores);
  }
  return failed;
}

static void remember(const Model *m, int64_t layer, int64_t kv, const float *key, int64_t kw, const float *value, int64_t vw, int64_t row, int64_t position) {
  int64_t slab = ((layer * m->rows + row) * m->key_heads + kv) * m->length;
  for (int64_t c = 0; c < kw; c++) put(m->keys, (slab * kw) + c * m->length + position, key[c], m->type);
  for (int64_t c = 0; c < vw; c++) put(m->values, (slab * vw) + position * vw + c, value[c], m->type);
}

/* Copy the first `n` positions of a row to another: a prompt shared by a group. */
void share(const Model *m, int64_t kw, int64_t vw, int64_t from, int64_t to, int64_t n) {
  int64_t size = m->type == FLOAT32 ? 4 : 2;
  for (int64_t layer = 0; layer < m->layers; layer++) {
    int64_t a = (layer * m->rows + from) * m->key_heads, b = (layer * m->rows + to) * m->key_heads;
    for (int64_t i = 0; i < m->key_heads * kw; i++)
      memcpy((char *)m->keys + (b * kw + i) * m->length * size, (char *)m->keys + (a * kw + i) * m->length * size, n * size);
    for (int64_t i = 0; i < m->key_heads; i++)
      memcpy((char *)m->values + (b + i) * m->length * vw * size, (char *)m->values + (a + i) * m->length * vw * size, n * vw * size);
  }
}

/* ---- layers ------------------------------------------------------------------------------------------------------ */

typedef struct { float *x, *normed, *q, *kv, *heads, *wide, *out; void *line, *line2; int32_t *index; float *gates; int32_t *picks; } Work;

static int latent_attention(const Model *m, int64_t i, Work *w, const int64_t *rows, const int64_t *positions, int64_t S) {
  const Layer *l = m->layer + i;
  int64_t N = m->heads, P = m->nope, R = m->rope, C = m->latent, V = m->value, kw = C + R, type = m->type;
  const float *query = w->normed;
  if (l->q_a.weight) {
    linear(&l->q_a, w->normed, m->hidden, S, w->wide, l->q_a.out, w->line, type);
    norm(w->wide, l->q_a.out, l->q_a_norm, w->wide, l->q_a.out, S, l->q_a.out, m->eps);
    linear(&l->q_b, w->wide, l->q_a.out, S, w->q, N * (P + R), w->line, type);
  } else linear(&l->q, query, m->hidden, S, w->q, N * (P + R), w->line, type);
  linear(&l->kv_a, w->normed, m->hidden, S, w->kv, kw, w->line, type);
  norm(w->kv, kw, l->kv_norm, w->kv, kw, S, C, m->eps);
  for (int64_t s = 0; s < S; s++) {
    const float *cs = m->cos_sin + positions[s] * R;
    rotate(w->kv + s * kw + C, cs, R, m->interleaved);
    remember(m, i, 0, w->kv + s * kw, kw, w->kv + s * kw, C, rows[s], positions[s]);
    for (int64_t h = 0; h < N; h++) {
      float *q = w->q + (s * N + h) * (P + R);
      rotate(q + P, cs, R, m->interleaved);
      memcpy(w->heads + (s * N + h) * kw + C, q + P, R * 4);
    }
  }
  int64_t per_k = packed_bytes(P, C, type), per_v = packed_bytes(C, V, type);
  for (int64_t h = 0; h < N; h++) { /* into latent space */
    convert(w->q + h * (P + R), N * (P + R), NULL, S, P, w->line, type);
    multiply((const char *)l->absorb_k + h * per_k, P, C, NULL, w->line, S, w->heads + h * kw, N * kw, type);
  }
  if (attend(m, i, w->heads, kw, C, rows, positions, S, w->wide)) return 1;
  for (int64_t h = 0; h < N; h++) { /* and back out */
    convert(w->wide + h * C, N * C, NULL, S, C, w->line, type);
    multiply((const char *)l->absorb_v + h * per_v, C, V, NULL, w->line, S, w->q + h * V, N * V, type);
  }
  linear(&l->o, w->q, N * V, S, w->out, m->hidden, w->line, type);
  return 0;
}

static int grouped_attention(const Model *m, int64_t i, Work *w, const int64_t *rows, const int64_t *positions, int64_t S) {
  const Layer *l = m->layer + i;
  int64_t N = m->heads, G = m->key_heads, D = m->head_dim;
  linear(&l->q, w->normed, m->hidden, S, w->q, N * D, w->line, m->type);
  linear(&l->k, w->normed, m->hidden, S, w->kv, G * D, w->line, m->type);
  linear(&l->v, w->normed, m->hidden, S, w->heads, G * D, w->line, m->type);
  if (l->q_norm) {
    norm(w->q, D, l->q_norm, w->q, D, S * N, D, m->eps);
    norm(w->kv, D, l->k_norm, w->kv, D, S * G, D, m->eps);
  }
  for (int64_t s = 0; s < S; s++) {
    const float *cs = m->cos_sin + positions[s] * D;
    for (int64_t h = 0; h < N; h++) rotate(w->q + (s * N + h) * D, cs, D, 0);
    for (int64_t g = 0; g < G; g++) {
      rotate(w->kv + (s * G + g) * D, cs, D, 0);
      remember(m, i, g, w->kv + (s * G + g) * D, D, w->heads + (s * G + g) * D, D, rows[s], positions[s]);
    }
  }
  if (attend(m, i, w->q, D, D, rows, positions, S, w->wide)) return 1;
  linear(&l->o, w->wide, N * D, S, w->out, m->hidden, w->line, m->type);
  return 0;
}

static void choose(const Model *m, const Layer *l, const float *scores, int32_t *picks, float *gates) {
  int64_t E = m->experts, per = E / m->groups;
  float biased[E], best[m->groups];
  for (int64_t e = 0; e < E; e++) biased[e] = scores[e] + l->router_bias[e];
  if (m->groups > 1) {
    for (int64_t g = 0; g < m->groups; g++) {
      float a = -INFINITY, b = -INFINITY;
      for (int64_t e = g * per; e < (g + 1) * per; e++) {
        if (biased[e] > a) b = a, a = biased[e];
        else if (biased[e] > b) b = biased[e];
      }
      best[g] = per > 1 ? a + b : a;
    }
    for (int64_t drop = 0; drop < m->groups - m->top_groups; drop++) {
      int64_t worst = 0;
      for (int64_t g = 1; g < m->groups; g++) if (best[g] <= best[worst]) worst = g;
      best[worst] = INFINITY;
      for (int64_t e = worst * per; e < (worst + 1) * per; e++) biased[e] = -INFINITY;
    }
  }
  float total = 1e-20f;
  for (int64_t k = 0; k < m->chosen; k++) {
    int64_t top = 0;
    for (int64_t e = 1; e < E; e++) if (biased[e] > biased[top]) top = e;
    picks[k] = top, gates[k] = scores[top], total += scores[top], biased[top] = -INFINITY;
  }
  for (int64_t k = 0; k < m->chosen; k++) gates[k] *= m->routed_scale / (m->normalise ? total : 1.0f);
}

static void feed_forward(const Linear *up, const Linear *down, const float *x, int64_t hidden, int64_t S, Work *w, int type) {
  linear(up, x, hidden, S, w->wide, up->out, w->line, type);
  swiglu(w->wide, S, up->out / 2);
  linear(down, w->wide, up->out, S, w->out, hidden, w->line, type);
}

static void mixture(const Model *m, const Layer *l, Work *w, int64_t S) {
  int64_t E = m->experts, K = m->chosen, I = m->expert_width, H = m->hidden;
  if (l->gate_up.weight) feed_forward(&l->gate_up, &l->down, w->normed, H, S, w, m->type);
  else memset(w->out, 0, S * H * 4);
  linear(&l->router, w->normed, H, S, w->q, E, w->line, FLOAT32); /* routing stays in float32 */
  for (int64_t s = 0; s < S; s++) {
    float *row = w->q + s * E;
    for (int64_t e = 0; e < E; e++) row[e] = 1 / (1 + exp_one(-row[e]));
    choose(m, l, row, w->picks + s * K, w->gates + s * K);
  }
  int64_t up = packed_bytes(H, 2 * I, m->type), down = packed_bytes(I, H, m->type);
  for (int64_t e = 0; e < E; e++) {
    int64_t n = 0;
    for (int64_t j = 0; j < S * K; j++) if (w->picks[j] == e) w->index[n] = j / K, w->index[S + n++] = j;
    if (!n) continue;
    convert(w->normed, H, w->index, n, H, w->line, m->type);
    multiply((const char *)l->expert_up + e * up, H, 2 * I, NULL, w->line, n, w->wide, 2 * I, m->type);
    swiglu(w->wide, n, I);
    convert(w->wide, 2 * I, NULL, n, I, w->line, m->type);
    multiply((const char *)l->expert_down + e * down, I, H, NULL, w->line, n, w->heads, H, m->type);
    for (int64_t j = 0; j < n; j++) {
      float gate = w->gates[w->index[S + j]], *to = w->out + w->index[j] * H, *from = w->heads + j * H;
      for (int64_t d = 0; d < H; d++) to[d] += gate * from[d];
    }
  }
}

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

/* S tokens at (rows, positions) -> logits [S, vocab]. Entries of one row must come with ascending positions.
   Returns 0, or 1 when memory is short. */
int decode(const Model *m, const int64_t *tokens, const int64_t *rows, const int64_t *positions, int64_t S, float *logits) {
  int64_t H = m->hidden, per_head = largest(m->latent + m->rope, largest(m->head_dim, m->nope + m->rope)), width = H;
  for (int64_t i = 0; i < m->layers; i++) {
    width = largest(width, largest(m->layer[i].gate_up.out, m->layer[i].q_a.out));
  }
  width = PAD16(largest(width, largest(m->heads * largest(per_head, m->value), largest(2 * m->expert_width, m->experts))) + 64);
  int64_t floats = S * (3 * PAD16(H) + 4 * width + width + m->chosen) + 1024, ints = S * (2 + m->chosen) + 64;
  char *memory = aligned_alloc(64, PAD16(floats * 4 + S * 2 * width * 4 + ints * 4 + 4096) );
  if (!memory) return 1;
  Work w;
  float *p = (float *)memory;
#define TAKE(count) (p += PAD16(count), p - PAD16(count))
  w.x = TAKE(S * H); w.normed = TAKE(S * H); w.out = TAKE(S * H);
  w.q = TAKE(S * width); w.kv = TAKE(S * width); w.heads = TAKE(S * width); w.wide = TAKE(S * width); w.line = TAKE(S * width);
  w.gates = TAKE(S * m->chosen); w.index = (int32_t *)TAKE(2 * S); w.picks = (int32_t *)TAKE(S * m->chosen);
#undef TAKE
  int failed = 0;
  for (int64_t s = 0; s < S; s++) memcpy(w.x + s * H, m->embedding + tokens[s] * H, H * 4);
  for (int64_t i = 0; i < m->layers && !failed; i++) {
    const Layer *l = m->layer + i;
    norm(w.x, H, l->input_norm, w.normed, H, S, H, m->eps);
    failed = m->latent ? latent_attention(m, i, &w, rows, positions, S) : grouped_attention(m, i, &w, rows, positions, S);
    for (int64_t j = 0; j < S * H; j++) w.x[j] += w.out[j];
    norm(w.x, H, l->post_norm, w.normed, H, S, H, m->eps);
    if (l->router.weight) mixture(m, l, &w, S);
    else feed_forward(&l->gate_up, &l->down, w.normed, H, S, &w, m->type);
    for (int64_t j = 0; j < S * H; j++) w.x[j] += w.out[j];
  }
  norm(w.x, H, m->norm, w.normed, H, S, H, m->eps);
  linear(&m->head, w.normed, H, S, logits, m->vocab, w.line, m->type);
  free(memory);
  return failed;
}
