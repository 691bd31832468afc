/* Decoding on the CPU: one call takes S new tokens, each at a position of some row, through the whole decoder.
   The cache is paged: blocks of 16 positions, which a table per row puts in order. A block holds, for each layer and key head,
   keys [width][16] and values [16][width]. Latent attention is weight-absorbed (DeepSeek-V2, arXiv:2405.04434 §2.1.2), so that
   it is one "key head" whose value is the front of its key.
   One team of threads goes through the whole call. A token's result does not depend on what else is in the call, bit for bit:
   every sum over inputs, positions or experts has one order. */
#include "linear.h"
#include <sched.h>
#include <stdatomic.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

enum { HALF = -1 }; /* what a cache keeps beside FLOAT32: eight times as exact as bfloat16, and as llama.cpp does */
#define BLOCK 16   /* positions */
#define QUERIES 8  /* that share a pass over the cache */
#define STRETCH 8  /* tokens of a row that attend together */
#define SPINS 2000 /* some tens of microseconds: rather wait than sleep, rather sleep than keep a busy machine from the others */
#define SERIAL 2000000 /* products under which one thread is faster: sharing out a layer costs some microseconds */

typedef struct {
  Linear q, q_a, q_b, kv_a, k, v, o, gate, up, down, router;
  const float *input_norm, *post_norm, *q_a_norm, *kv_norm, *q_norm, *k_norm, *router_bias;
  const Linear *absorb_k, *absorb_v;       /* per head: [in = nope, out = latent], [in = latent, out = value] */
  const Linear *expert_up, *expert_down;   /* per expert */
} Layer;

typedef struct {
  int64_t layers, hidden, vocab, heads, key_heads, nope, rope, value, latent, head_dim;
  int64_t experts, chosen, groups, top_groups, best_of_group, softmax, normalise, expert_width;
  int64_t type, interleaved, blocks, weights, threads;
  float eps, scale, routed_scale;
  Linear embedding, head;
  const float *norm;
  const Layer *layer;
  void *keys, *values; /* [layers, blocks, key_heads, key width, 16], [layers, blocks, key_heads, 16, value width] */
} Model;

typedef struct {
  int64_t S, rows, width, wanted_count; /* new tokens, rows of the tables, blocks a table has room for */
  const int64_t *tokens, *positions, *row, *wanted;
  const int64_t *adapters;              /* [S], 0 for the base, or null */
  const int32_t *tables;                /* [rows, width] */
  const float *cos_sin;                 /* [S, rope] */
  float *states, *logits;               /* [wanted_count, hidden], and [wanted_count, vocab] or null */
} Call;

typedef struct {
  _Alignas(64) atomic_int arrived;
  _Alignas(64) atomic_int phase;
  _Alignas(64) atomic_long next; /* item of the loop that is being shared out */
} Team;

typedef struct { /* one a thread: what all share, and who it is */
  float *x, *normed, *q, *kv, *v, *heads, *wide, *out, *routed, *gates, *scores;
  char *line, *line2;
  int32_t *picks, *order, *place; /* [S K]: experts chosen; (token, choice) pairs by expert; where in that order a pair is */
  int32_t *first, *active;        /* [E + 1]: where an expert's pairs begin; which experts have any, and how many have */
  int64_t *stretch, stretches;    /* first tokens of the stretches, and S behind them */
  int64_t passes;                 /* the most that a stretch takes */
  const int64_t *adapters;        /* [S] or null */
  int64_t thread, threads;
  Team *team;
} Work;

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t key_width(const Model *m) { return m->latent ? m->latent + m->rope : m->head_dim; }
static int64_t value_width(const Model *m) { return m->latent ? m->latent : m->head_dim; }

/* ---- the team ---------------------------------------------------------------------------------------------------- */

/* Wait for all. OpenMP's own barrier never gives its processor away, which stalls everything on a machine that is busy. */
static void wait_for_all(const Work *w) {
  if (w->threads == 1) { atomic_store_explicit(&w->team->next, 0, memory_order_relaxed); return; }
  int phase = atomic_load_explicit(&w->team->phase, memory_order_acquire);
  if (atomic_fetch_add_explicit(&w->team->arrived, 1, memory_order_acq_rel) + 1 == w->threads) {
    atomic_store_explicit(&w->team->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&w->team->next, 0, memory_order_relaxed);
    atomic_store_explicit(&w->team->phase, phase + 1, memory_order_release);
    return;
  }
  for (int spins = 0; atomic_load_explicit(&w->team->phase, memory_order_acquire) == phase; spins++) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (spins > SPINS) sched_yield();
  }
}

/* A thread's own share of n items, in one piece. */
#define SHARE(i, n) for (int64_t i = (n) * w->thread / w->threads; i < (n) * (w->thread + 1) / w->threads; i++)
#define EACH_TOKEN SHARE(s, S)

/* The next of items that are dealt out one by one, until `wait_for_all`. */
static int64_t next_item(const Work *w) { return atomic_fetch_add_explicit(&w->team->next, 1, memory_order_relaxed); }

/* ---- the small things, one row each ------------------------------------------------------------------------------- */

static void norm_row(const float *x, const float *w, float *y, int64_t width, float eps) {
  float total = 0;
  for (int64_t d = 0; d < width; d++) total += x[d] * x[d];
  float r = 1 / sqrtf(total / width + eps);
  for (int64_t d = 0; d < width; d++) y[d] = x[d] * r * w[d];
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

INLINE vec silu(vec x) { return x / (1.0f + exp_vec(-x)); }

static void swiglu_row(float *x, int64_t width) { /* [gates, ups] -> the first half, in place */
  int64_t d = 0, n = width % 16;
  for (; d + 16 <= width; d += 16) *(vec *)(x + d) = silu(*(vec *)(x + d)) * *(vec *)(x + width + d);
  if (!n) return;
  float g[16] = {0}, u[16] = {0};
  memcpy(g, x + d, n * 4), memcpy(u, x + width + d, n * 4);
  *(vec *)g = silu(*(vec *)g) * *(vec *)u;
  memcpy(x + d, g, n * 4);
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

INLINE int64_t at_block(const Model *m, const Call *c, int64_t layer, int64_t s, int64_t j, int64_t kv) {
  return (layer * m->blocks + c->tables[c->row[s] * c->width + j]) * m->key_heads + kv;
}

static void remember(const Model *m, const Call *c, int64_t layer, int64_t s, int64_t kv, const float *key, const float *value) {
  int64_t kw = key_width(m), vw = value_width(m), slot = c->positions[s] % BLOCK;
  int64_t block = at_block(m, c, layer, s, c->positions[s] / BLOCK, kv);
  if (m->type == FLOAT32) {
    for (int64_t i = 0; i < kw; i++) ((float *)m->keys)[(block * kw + i) * BLOCK + slot] = key[i];
    memcpy((float *)m->values + (block * BLOCK + slot) * vw, value, vw * 4);
  } else {
    uint16_t column[kw];
    store_half(column, key, kw);
    for (int64_t i = 0; i < kw; i++) ((uint16_t *)m->keys)[(block * kw + i) * BLOCK + slot] = column[i];
    store_half((uint16_t *)m->values + (block * BLOCK + slot) * vw, value, vw);
  }
}

INLINE vec load_kept(const void *base, int64_t i, int type) {
  return type == FLOAT32 ? *(const vec *)((const float *)base + i) : load_half16((const uint16_t *)base + i);
}

/* Queries over one key head of one row: each its vector, where its result goes, and how many positions it sees. */
typedef struct { const float *q[QUERIES]; float *out[QUERIES]; int64_t seen[QUERIES], longest; const int32_t *table; } Pass;

INLINE void softmax_row(float *row, int64_t n, int64_t longest) {
  int64_t padded = PAD16(n);
  for (int64_t j = n; j < padded; j++) row[j] = -INFINITY;
  vec top = splat(-INFINITY), total = splat(0);
  for (int64_t j = 0; j < padded; j += 16) top = max_vec(*(vec *)(row + j), top);
  float peak = highest_of(top);
  for (int64_t j = 0; j < padded; j += 16) *(vec *)(row + j) = exp_vec(*(vec *)(row + j) - peak);
  for (int64_t j = n; j < PAD16(longest); j++) row[j] = 0;
  for (int64_t j = 0; j < padded; j += 16) total += *(vec *)(row + j);
  float inverse = 1 / sum_vec(total);
  for (int64_t j = 0; j < padded; j += 16) *(vec *)(row + j) *= inverse;
}

/* V vectors of the values from column c on, summed with the scores as weights. */
INLINE void sum_values(const int Q, const int V, const int type, const Model *m, const Pass *p, const char *values, int64_t stride,
                       int64_t vw, int64_t c, const float *scores, int64_t lds) {
  vec acc[QUERIES][4];
  for (int q = 0; q < Q; q++)
    for (int i = 0; i < V; i++) acc[q][i] = splat(0);
  for (int64_t j = 0; j < p->longest; j++) {
    const void *line = values + p->table[j / BLOCK] * stride + (j % BLOCK * vw + c) * (type == FLOAT32 ? 4 : 2);
    vec v[4];
    for (int i = 0; i < V; i++) v[i] = load_kept(line, 16 * i, type);
    for (int q = 0; q < Q; q++)
      for (int i = 0; i < V; i++) acc[q][i] += scores[q * lds + j] * v[i];
  }
  for (int q = 0; q < Q; q++)
    for (int i = 0; i < V; i++) *(vec *)(p->out[q] + c + 16 * i) = acc[q][i];
}

INLINE void attend_pass(const int Q, const int type, const Model *m, const Pass *p, int64_t layer, int64_t kv, float *scores) {
  int64_t kw = key_width(m), vw = value_width(m), lds = PAD16(p->longest), size = type == FLOAT32 ? 4 : 2;
  int64_t base = layer * m->blocks * m->key_heads + kv, c = 0;
  const char *keys = (const char *)m->keys + base * kw * BLOCK * size, *values = (const char *)m->values + base * vw * BLOCK * size;
  int64_t key_stride = m->key_heads * kw * BLOCK * size, value_stride = m->key_heads * vw * BLOCK * size;
  for (int64_t j = 0; j * BLOCK < p->longest; j++) {
    const char *block = keys + p->table[j] * key_stride, *value = values + p->table[j] * value_stride;
    const char *next = keys + p->table[(j + 1) * BLOCK < p->longest ? j + 1 : j] * key_stride;
    vec acc[QUERIES];
    for (int q = 0; q < Q; q++) acc[q] = splat(0);
    for (int64_t i = 0; i < kw; i++) { /* blocks lie anywhere: ask for them before they are needed */
      __builtin_prefetch(next + i * BLOCK * size), __builtin_prefetch(value + i * BLOCK * size);
      vec k = load_kept(block, i * BLOCK, type);
      for (int q = 0; q < Q; q++) acc[q] += p->q[q][i] * k;
    }
    for (int q = 0; q < Q; q++) *(vec *)(scores + q * lds + j * BLOCK) = acc[q] * m->scale;
  }
  for (int q = 0; q < Q; q++) softmax_row(scores + q * lds, p->seen[q], p->longest);
  if (Q <= 4) for (; c + 64 <= vw; c += 64) sum_values(Q, 4, type, m, p, values, value_stride, vw, c, scores, lds);
  for (; c + 32 <= vw; c += 32) sum_values(Q, 2, type, m, p, values, value_stride, vw, c, scores, lds);
  for (; c < vw; c += 16) sum_values(Q, 1, type, m, p, values, value_stride, vw, c, scores, lds);
}

static void attend_some(int Q, const Model *m, const Pass *p, int64_t layer, int64_t kv, float *scores) {
#define CASE(N)                                                            \
  case N:                                                                  \
    if (m->type == FLOAT32) attend_pass(N, FLOAT32, m, p, layer, kv, scores); \
    else attend_pass(N, HALF, m, p, layer, kv, scores);                    \
    break;
  switch (Q) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

/* q [S, heads, key width] over the cache of one layer -> out [S, heads, value width], a multiple of 16. */
static void attend(const Model *m, const Call *c, const Work *w, int64_t layer, const float *q, float *out) {
  int64_t repeats = m->heads / m->key_heads, kw = key_width(m), vw = value_width(m), per = m->key_heads * w->passes;
  for (int64_t item; (item = w->stretches * per - 1 - next_item(w)) >= 0;) { /* the longest first */
    int64_t first = w->stretch[item / per], last = w->stretch[item / per + 1];
    int64_t kv = item % per / w->passes, begin = item % w->passes * QUERIES, queries = (last - first) * repeats - begin;
    if (queries <= 0) continue;
    if (queries > QUERIES) queries = QUERIES;
    Pass p = {.table = c->tables + c->row[first] * c->width};
    for (int64_t i = 0; i < queries; i++) {
      int64_t s = first + (begin + i) / repeats, head = kv * repeats + (begin + i) % repeats;
      p.q[i] = q + (s * m->heads + head) * kw, p.out[i] = out + (s * m->heads + head) * vw;
      p.seen[i] = p.longest = c->positions[s] + 1;
    }
    attend_some(queries, m, &p, layer, kv, w->scores);
  }
  wait_for_all(w);
}

/* ---- layers: called by every thread of the team -------------------------------------------------------------------- */

/* y += up (down x), for one token; x as floats whatever the type of the map. */
static void add_low_rank(const LowRank *low, int64_t in, int64_t out, const float *x, float *y) {
  for (int64_t r = 0; r < low->rank; r++) {
    const float *down = low->down + r * in, *up = low->up + r * out;
    float t = 0;
    for (int64_t i = 0; i < in; i++) t += down[i] * x[i];
    for (int64_t o = 0; o < out; o++) y[o] += t * up[o];
  }
}

/* y[k] = maps[k] x, for maps of the same inputs; x is converted once for every run of maps of one type. */
static void project(const Linear *const *maps, float *const *y, const int64_t *ldy, int count, const float *x, int64_t ldx, int64_t S,
                    const Work *w) {
  for (int k = 0; k < count; k++) {
    const Linear *l = maps[k];
    if (k == 0 || l->type != maps[k - 1]->type) {
      if (k) wait_for_all(w);
      EACH_TOKEN convert(x + s * ldx, l->in, w->line + s * line_bytes(l->in, l->type), l->type);
      wait_for_all(w);
    }
    multiply(l, w->line, S, y[k], ldy[k], w->thread, w->threads);
  }
  wait_for_all(w);
  if (!w->adapters) return;
  EACH_TOKEN {
    for (int k = 0; k < count; k++)
      if (maps[k]->low && w->adapters[s])
        add_low_rank(maps[k]->low + w->adapters[s] - 1, maps[k]->in, maps[k]->out, x + s * ldx, y[k] + s * ldy[k]);
  }
  wait_for_all(w);
}

static void one(const Linear *l, const float *x, int64_t ldx, int64_t S, float *y, const Work *w) {
  project(&l, &y, &l->out, 1, x, ldx, S, w);
}

static void latent_attention(const Model *m, const Call *c, const Work *w, int64_t i) {
  const Layer *l = m->layer + i;
  int64_t S = c->S, N = m->heads, P = m->nope, R = m->rope, C = m->latent, V = m->value, kw = C + R;
  const Linear *query = l->q_a.weight ? &l->q_a : &l->q;
  float *first = l->q_a.weight ? w->wide : w->q;
  project((const Linear *[]){query, &l->kv_a}, (float *[]){first, w->kv}, (int64_t[]){query->out, kw}, 2, w->normed, m->hidden, S, w);
  if (l->q_a.weight) {
    EACH_TOKEN norm_row(w->wide + s * query->out, l->q_a_norm, w->wide + s * query->out, query->out, m->eps);
    wait_for_all(w);
    one(&l->q_b, w->wide, query->out, S, w->q, w);
  }
  EACH_TOKEN {
    const float *cs = c->cos_sin + s * R;
    float *kv = w->kv + s * kw;
    norm_row(kv, l->kv_norm, kv, C, m->eps);
    rotate(kv + C, cs, R, m->interleaved);
    remember(m, c, i, s, 0, kv, kv);
    for (int64_t h = 0; h < N; h++) { /* queries into latent space */
      float *q = w->q + (s * N + h) * (P + R);
      rotate(q + P, cs, R, m->interleaved);
      memcpy(w->heads + (s * N + h) * kw + C, q + P, R * 4);
    }
  }
  wait_for_all(w);
  int64_t from = line_bytes(P, l->absorb_k->type), back = line_bytes(C, l->absorb_v->type);
  SHARE(h, N) {
    for (int64_t s = 0; s < S; s++) convert(w->q + (s * N + h) * (P + R), P, w->line + (h * S + s) * from, l->absorb_k->type);
    for (int64_t b = 0; b * WIDE < C; b++)
      multiply_block(l->absorb_k + h, b, w->line + h * S * from, S, w->heads + h * kw + b * WIDE, N * kw);
  }
  wait_for_all(w);
  attend(m, c, w, i, w->heads, w->wide);
  SHARE(h, N) { /* and back out */
    for (int64_t s = 0; s < S; s++) convert(w->wide + (s * N + h) * C, C, w->line + (h * S + s) * back, l->absorb_v->type);
    for (int64_t b = 0; b * WIDE < V; b++)
      multiply_block(l->absorb_v + h, b, w->line + h * S * back, S, w->q + h * V + b * WIDE, N * V);
  }
  wait_for_all(w);
  one(&l->o, w->q, N * V, S, w->out, w);
}

static void grouped_attention(const Model *m, const Call *c, const Work *w, int64_t i) {
  const Layer *l = m->layer + i;
  int64_t S = c->S, N = m->heads, G = m->key_heads, D = m->head_dim;
  project((const Linear *[]){&l->q, &l->k, &l->v}, (float *[]){w->q, w->kv, w->v}, (int64_t[]){N * D, G * D, G * D}, 3, w->normed,
          m->hidden, S, w);
  EACH_TOKEN {
    const float *cs = c->cos_sin + s * D;
    for (int64_t h = 0; h < N + G; h++) {
      float *head = h < N ? w->q + (s * N + h) * D : w->kv + (s * G + h - N) * D;
      if (l->q_norm) norm_row(head, h < N ? l->q_norm : l->k_norm, head, D, m->eps);
      rotate(head, cs, D, 0);
    }
    for (int64_t g = 0; g < G; g++) remember(m, c, i, s, g, w->kv + (s * G + g) * D, w->v + (s * G + g) * D);
  }
  wait_for_all(w);
  attend(m, c, w, i, w->q, w->wide);
  one(&l->o, w->wide, N * D, S, w->out, w);
}

static void feed_forward(const Model *m, const Layer *l, const Work *w, int64_t S) {
  int64_t I = l->gate.out;
  project((const Linear *[]){&l->gate, &l->up}, (float *[]){w->wide, w->wide + I}, (int64_t[]){2 * I, 2 * I}, 2, w->normed, m->hidden,
          S, w);
  EACH_TOKEN swiglu_row(w->wide + s * 2 * I, I);
  wait_for_all(w);
  one(&l->down, w->wide, 2 * I, S, w->out, w);
}

/* ---- experts ------------------------------------------------------------------------------------------------------ */

static void affinities(const Model *m, float *scores) {
  int64_t E = m->experts;
  if (!m->softmax) {
    for (int64_t e = 0; e < E; e += 16)
      store_some(scores, e, 1.0f / (1.0f + exp_vec(-load_some(scores, e, E - e, 0, FLOAT32))), E - e, FLOAT32);
    return;
  }
  float peak = scores[0], total = 0;
  for (int64_t e = 1; e < E; e++) peak = scores[e] > peak ? scores[e] : peak;
  for (int64_t e = 0; e < E; e++) total += scores[e] = exp_one(scores[e] - peak);
  for (int64_t e = 0; e < E; e++) scores[e] /= total;
}

/* Drop the experts of all but the best groups, a group being as good as its best two (or one) together. */
static void limit_groups(const Model *m, float *biased) {
  int64_t per = m->experts / m->groups;
  float best[m->groups];
  for (int64_t g = 0; g < m->groups; g++) {
    float a = -INFINITY, b = -INFINITY;
    for (int64_t e = g * per; e < (g + 1) * per; e++) {
      if (biased[e] > a) b = a, a = biased[e];
      else if (biased[e] > b) b = biased[e];
    }
    best[g] = per > 1 && m->best_of_group > 1 ? a + b : a;
  }
  for (int64_t drop = 0; drop < m->groups - m->top_groups; drop++) {
    int64_t worst = 0;
    for (int64_t g = 1; g < m->groups; g++) if (best[g] <= best[worst]) worst = g;
    best[worst] = INFINITY;
    for (int64_t e = worst * per; e < (worst + 1) * per; e++) biased[e] = -INFINITY;
  }
}

static void choose(const Model *m, const Layer *l, const float *scores, int32_t *picks, float *gates) {
  float biased[m->experts], total = 1e-20f;
  for (int64_t e = 0; e < m->experts; e++) biased[e] = scores[e] + (l->router_bias ? l->router_bias[e] : 0);
  if (m->groups > 1) limit_groups(m, biased);
  for (int64_t k = 0; k < m->chosen; k++) {
    int64_t top = 0;
    for (int64_t e = 1; e < m->experts; e++) if (biased[e] > biased[top]) top = e;
    picks[k] = top, gates[k] = scores[top], total += scores[top], biased[top] = -INFINITY;
  }
  for (int64_t k = 0; k < m->chosen; k++) gates[k] *= m->routed_scale / (m->normalise ? total : 1.0f);
}

static void sort_pairs(const Model *m, const Work *w, int64_t pairs) {
  int32_t next[m->experts], *active = w->active + 1;
  memset(w->first, 0, (m->experts + 1) * 4);
  for (int64_t p = 0; p < pairs; p++) w->first[w->picks[p] + 1]++;
  for (int64_t e = 0; e < m->experts; e++) {
    if (w->first[e + 1]) *active++ = e;
    w->first[e + 1] += w->first[e];
  }
  w->active[0] = active - w->active - 1;
  memcpy(next, w->first, sizeof next);
  for (int64_t p = 0; p < pairs; p++) w->place[p] = next[w->picks[p]]++, w->order[w->place[p]] = p;
}

/* Every expert for its own rows; lines and y are in the order of pairs. */
static void multiply_experts(const Linear *stack, const Work *w, float *y, int64_t ldy) {
  int64_t blocks = (stack->out + WIDE - 1) / WIDE, bytes = line_bytes(stack->in, stack->type);
  for (int64_t item; (item = next_item(w)) < w->active[0] * blocks;) {
    int64_t e = w->active[1 + item / blocks], b = item % blocks, at = w->first[e], n = w->first[e + 1] - at;
    multiply_block(stack + e, b, w->line2 + at * bytes, n, y + at * ldy + b * WIDE, ldy);
  }
  wait_for_all(w);
}

static void mixture(const Model *m, const Layer *l, const Work *w, int64_t S) {
  int64_t E = m->experts, K = m->chosen, I = m->expert_width, H = m->hidden, pairs = S * K;
  const Linear *up = l->expert_up, *down = l->expert_down;
  one(&l->router, w->normed, H, S, w->q, w); /* routing stays in float32 */
  EACH_TOKEN {
    affinities(m, w->q + s * E);
    choose(m, l, w->q + s * E, w->picks + s * K, w->gates + s * K);
  }
  wait_for_all(w);
  if (w->thread == 0) sort_pairs(m, w, pairs);
  wait_for_all(w);
  SHARE(p, pairs)
    convert(w->normed + w->order[p] / K * H, H, w->line2 + p * line_bytes(H, up->type), up->type);
  wait_for_all(w);
  multiply_experts(up, w, w->routed, 2 * I);
  SHARE(p, pairs) {
    swiglu_row(w->routed + p * 2 * I, I);
    convert(w->routed + p * 2 * I, I, w->line2 + p * line_bytes(I, down->type), down->type);
  }
  wait_for_all(w);
  multiply_experts(down, w, w->routed, H);
  if (l->gate.weight) feed_forward(m, l, w, S);
  EACH_TOKEN {
    float *to = w->out + s * H;
    if (!l->gate.weight) memset(to, 0, H * 4);
    for (int64_t k = 0; k < K; k++) {
      float gate = w->gates[s * K + k], *from = w->routed + w->place[s * K + k] * H;
      for (int64_t d = 0; d < H; d++) to[d] += gate * from[d];
    }
  }
  wait_for_all(w);
}

/* ---- the call ------------------------------------------------------------------------------------------------------ */

static int is_valid(const Model *m, const Call *c) {
  for (int64_t s = 0; s < c->S; s++) {
    if (c->tokens[s] < 0 || c->tokens[s] >= m->vocab || c->row[s] < 0 || c->row[s] >= c->rows) return 0;
    if (c->positions[s] < 0 || c->positions[s] >= c->width * BLOCK) return 0;
    for (int64_t j = c->positions[s] / BLOCK; j >= 0; j--) {
      int32_t block = c->tables[c->row[s] * c->width + j];
      if (block < 0 || block >= m->blocks) return 0;
      if (s && c->row[s - 1] == c->row[s] && c->positions[s - 1] >= j * BLOCK) break; /* seen with the token before */
    }
  }
  for (int64_t i = 0; i < c->wanted_count; i++) if (c->wanted[i] < 0 || c->wanted[i] >= c->S) return 0;
  return 1;
}

/* Tokens of a row with neighbouring positions, STRETCH at most, attend together. */
static void find_stretches(const Model *m, const Call *c, Work *w) {
  int64_t longest = 1;
  w->stretches = 0;
  for (int64_t s = 0; s < c->S; s++) {
    int64_t begun = w->stretches ? w->stretch[w->stretches - 1] : 0;
    int follows = s && c->row[s] == c->row[s - 1] && c->positions[s] == c->positions[s - 1] + 1;
    if (!follows || s - begun == STRETCH) w->stretch[w->stretches++] = begun = s;
    longest = largest(longest, s - begun + 1);
  }
  w->stretch[w->stretches] = c->S;
  w->passes = (longest * (m->heads / m->key_heads) + QUERIES - 1) / QUERIES;
}

/* Bytes of one line that any map of a layer may ask of a token, for attention and feed-forward, or for experts. */
static int64_t longest_line(const Model *m, int experts) {
  int64_t longest = 0;
  for (int64_t i = 0; i < m->layers; i++) {
    const Layer *l = m->layer + i;
    const Linear *maps[] = {&l->q, &l->q_a, &l->q_b, &l->kv_a, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down, &l->router,
                            l->expert_up, l->expert_down};
    for (int k = experts ? 11 : 0; k < (experts ? 13 : 11); k++)
      if (maps[k] && maps[k]->weight) longest = largest(longest, line_bytes(maps[k]->in, maps[k]->type));
    if (l->absorb_k && !experts)
      longest = largest(longest, m->heads * largest(line_bytes(m->nope, l->absorb_k->type), line_bytes(m->latent, l->absorb_v->type)));
  }
  return longest;
}

/* Point `w` into `memory`; returns how many bytes are wanted in all. */
static int64_t lay_out(const Model *m, int64_t S, int64_t wanted, int64_t seen, char *memory, Work *w) {
  int64_t H = m->hidden, N = m->heads, K = m->experts ? m->chosen : 0, kw = key_width(m), vw = value_width(m), at = 0, inner = 0;
  for (int64_t i = 0; i < m->layers; i++) inner = largest(inner, largest(2 * m->layer[i].gate.out, m->layer[i].q_a.out));
  int64_t query = largest(N * largest(m->nope + m->rope, m->value), m->experts), pairs = S * K;
#define TAKE(field, bytes) w->field = (void *)(memory + at), at += ((bytes) + 127) & ~(int64_t)63
  TAKE(x, S * H * 4); TAKE(normed, S * H * 4); TAKE(out, S * H * 4);
  TAKE(q, S * query * 4); TAKE(kv, S * m->key_heads * kw * 4); TAKE(v, S * m->key_heads * vw * 4);
  TAKE(heads, m->latent ? S * N * kw * 4 : 0); TAKE(wide, S * largest(inner, N * vw) * 4);
  TAKE(routed, pairs * largest(2 * m->expert_width, H) * 4); TAKE(gates, pairs * 4);
  TAKE(picks, pairs * 4); TAKE(order, pairs * 4); TAKE(place, pairs * 4);
  TAKE(first, (m->experts + 1) * 4); TAKE(active, (m->experts + 1) * 4); TAKE(stretch, (S + 1) * 8);
  TAKE(line, largest(S * longest_line(m, 0), wanted * line_bytes(H, m->head.type))); TAKE(line2, pairs * longest_line(m, 1));
  TAKE(scores, m->threads * QUERIES * PAD16(seen) * 4);
#undef TAKE
  return at;
}

int64_t work_bytes(const Model *m, int64_t S, int64_t wanted, int64_t seen) {
  Work w;
  return lay_out(m, S, wanted, seen, NULL, &w);
}

static void add_and_norm(const Model *m, const Work *w, const float *weight, int64_t S, int adds) {
  int64_t H = m->hidden;
  EACH_TOKEN {
    float *x = w->x + s * H, *out = w->out + s * H;
    if (adds) for (int64_t d = 0; d < H; d++) x[d] += out[d];
    norm_row(x, weight, w->normed + s * H, H, m->eps);
  }
  wait_for_all(w);
}

static void run_layers(const Model *m, const Call *c, const Work *w) {
  int64_t S = c->S, H = m->hidden;
  EACH_TOKEN unpack_row(&m->embedding, c->tokens[s], w->x + s * H);
  wait_for_all(w);
  for (int64_t i = 0; i < m->layers; i++) {
    const Layer *l = m->layer + i;
    add_and_norm(m, w, l->input_norm, S, i > 0);
    if (m->latent) latent_attention(m, c, w, i);
    else grouped_attention(m, c, w, i);
    add_and_norm(m, w, l->post_norm, S, 1);
    if (l->router.weight) mixture(m, l, w, S);
    else feed_forward(m, l, w, S);
  }
  SHARE(i, c->wanted_count) {
    float *x = w->x + c->wanted[i] * H, *out = w->out + c->wanted[i] * H, *to = c->states + i * H;
    for (int64_t d = 0; d < H; d++) to[d] = x[d] + out[d];
    norm_row(to, m->norm, to, H, m->eps);
  }
  wait_for_all(w);
  if (c->logits) one(&m->head, c->states, H, c->wanted_count, c->logits, w);
}

/* `memory` has work_bytes(S, wanted_count, the largest position + 1). Returns 0, or 1 for an id, position, row or block that does not exist. */
int decode_step(const Model *m, const Call *c, char *memory) {
  Work w;
  if (!is_valid(m, c)) return 1;
  int64_t seen = 1;
  for (int64_t s = 0; s < c->S; s++) seen = largest(seen, c->positions[s] + 1);
  lay_out(m, c->S, c->wanted_count, seen, memory, &w);
  find_stretches(m, c, &w);
  Team team = {0};
  w.team = &team, w.adapters = c->adapters;
#pragma omp parallel num_threads(m->threads) if (c->S * m->weights > SERIAL)
  {
    Work mine = w;
    mine.thread = 0, mine.threads = 1;
#if defined(_OPENMP)
    mine.thread = omp_get_thread_num(), mine.threads = omp_get_num_threads();
#endif
    mine.scores += mine.thread * QUERIES * PAD16(seen);
    run_layers(m, c, &mine);
  }
  return 0;
}

/* Overwrite blocks to[i] by blocks from[i], in every layer. */
void copy_blocks(const Model *m, const int64_t *from, const int64_t *to, int64_t n) {
  int64_t size = m->type == FLOAT32 ? 4 : 2, widths[] = {key_width(m), value_width(m)};
  for (int64_t layer = 0; layer < m->layers; layer++)
    for (int side = 0; side < 2; side++) {
      int64_t bytes = m->key_heads * widths[side] * BLOCK * size;
      char *base = (char *)(side ? m->values : m->keys) + layer * m->blocks * bytes;
      for (int64_t i = 0; i < n; i++) memcpy(base + to[i] * bytes, base + from[i] * bytes, bytes);
    }
}
