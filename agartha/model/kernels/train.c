/* Training kernels for the CPU: attention over packed documents (rotation fused in), RMSNorm and SwiGLU, each with its gradient.
   Scores are rebuilt in the backward pass from the saved log-sum-exp, as in FlashAttention-2 (arXiv:2307.08691). */
#include "common.h"

/* One attention problem. Strides are in elements; head strides may be 0 (a key shared by all heads). */
typedef struct {
  int64_t batch, tokens, heads, key_heads, nope, rope, value;
  int64_t type, interleaved;
  float scale;
  const void *q, *k_nope, *k_rope, *v;
  int64_t q_row, q_head, kn_row, kn_head, kr_row, kr_head, v_row, v_head;
  const float *cos_sin;    /* [batch * tokens, rope] */
  const int32_t *start;    /* [batch * tokens] or NULL */
  void *out;               /* [batch * tokens, heads, value] */
  float *lse;              /* [batch * tokens, heads] */
  const void *d_out;
  void *d_q, *d_v, *d_kn, *d_kr; /* contiguous: [.., heads, nope+rope], [.., key_heads, value], [.., key_heads, nope], [.., k_rope heads, rope] */
} Attention;

INLINE void turn(float *restrict to, const float *restrict x, const float *cs, int64_t rope, int interleaved) {
  int64_t half = rope / 2;
  for (int64_t i = 0; i < half; i++) {
    float a = interleaved ? x[2 * i] : x[i], b = interleaved ? x[2 * i + 1] : x[half + i];
    to[i] = a * cs[i] - b * cs[half + i];
    to[half + i] = b * cs[i] + a * cs[half + i];
  }
}

INLINE void turn_back(float *restrict to, const float *restrict g, const float *cs, int64_t rope, int interleaved) {
  int64_t half = rope / 2;
  for (int64_t i = 0; i < half; i++) {
    float a = g[i] * cs[i] + g[half + i] * cs[half + i], b = g[half + i] * cs[i] - g[i] * cs[half + i];
    to[interleaved ? 2 * i : i] = a;
    to[interleaved ? 2 * i + 1 : half + i] = b;
  }
}

#define BLOCK 48

typedef struct {
  float *q, *k, *kt, *v, *vt, *o, *s, *dp, *dq, *dk, *dv;
  int64_t n, width, value, columns; /* padded sizes */
} Scratch;

static int64_t scratch_floats(const Attention *a, int64_t n) {
  int64_t w = PAD16(a->nope + a->rope), v = PAD16(a->value), c = PAD16(n) + 64;
  return n * (4 * w + 4 * v) + c * (w + v) + 2 * BLOCK * c + 4096;
}

static Scratch carve(const Attention *a, float *memory, int64_t n) {
  Scratch s = {.n = n, .width = PAD16(a->nope + a->rope), .value = PAD16(a->value), .columns = PAD16(n) + 64};
  float *p = memory;
#define TAKE(field, count) s.field = p, p += PAD16(count)
  TAKE(q, n * s.width); TAKE(k, n * s.width); TAKE(dq, n * s.width); TAKE(dk, n * s.width);
  TAKE(v, n * s.value); TAKE(o, n * s.value); TAKE(dv, n * s.value);
  TAKE(kt, s.columns * s.width); TAKE(vt, s.columns * s.value);
  TAKE(s, BLOCK * s.columns); TAKE(dp, BLOCK * s.columns);
#undef TAKE
  return s;
}

static void gather_queries(const Attention *a, Scratch *s, int64_t first, int64_t head) {
  float tmp[1024];
  for (int64_t i = 0; i < s->n; i++) {
    float *q = s->q + i * s->width;
    load(q, at(a->q, (first + i) * a->q_row + head * a->q_head, a->type), a->nope, a->type);
    load(tmp, at(a->q, (first + i) * a->q_row + head * a->q_head + a->nope, a->type), a->rope, a->type);
    turn(q + a->nope, tmp, a->cos_sin + (first + i) * a->rope, a->rope, a->interleaved);
    for (int64_t d = a->nope + a->rope; d < s->width; d++) q[d] = 0;
  }
}

static void gather_keys(const Attention *a, Scratch *s, int64_t first, int64_t kv) { /* once for all heads that share them */
  float tmp[1024];
  for (int64_t i = 0; i < s->n; i++) {
    const float *cs = a->cos_sin + (first + i) * a->rope;
    float *k = s->k + i * s->width, *v = s->v + i * s->value;
    if (a->nope) load(k, at(a->k_nope, (first + i) * a->kn_row + kv * a->kn_head, a->type), a->nope, a->type);
    load(tmp, at(a->k_rope, (first + i) * a->kr_row + kv * a->kr_head, a->type), a->rope, a->type);
    turn(k + a->nope, tmp, cs, a->rope, a->interleaved);
    load(v, at(a->v, (first + i) * a->v_row + kv * a->v_head, a->type), a->value, a->type);
    for (int64_t d = a->nope + a->rope; d < s->width; d++) k[d] = 0;
    for (int64_t d = a->value; d < s->value; d++) v[d] = 0;
  }
}

static void transpose(float *restrict to, const float *restrict from, int64_t n, int64_t width, int64_t columns) {
  for (int64_t d = 0; d < width; d++) {
    for (int64_t i = 0; i < n; i++) to[d * columns + i] = from[i * width + d];
    for (int64_t i = n; i < columns; i++) to[d * columns + i] = 0;
  }
}

static void forward_document(const Attention *a, Scratch *s, int64_t first, int64_t head, int64_t group) {
  gather_queries(a, s, first, head);
  if (group == 0) {
    gather_keys(a, s, first, head / (a->heads / a->key_heads));
    transpose(s->kt, s->k, s->n, s->width, s->columns);
  }
  for (int64_t i = 0; i < s->n; i += BLOCK) {
    int64_t m = s->n - i < BLOCK ? s->n - i : BLOCK, seen = PAD16(i + m);
    product(m, seen, s->width, s->q + i * s->width, s->width, 1, s->kt, s->columns, s->s, s->columns, 0);
    for (int64_t r = 0; r < m; r++) {
      float *row = s->s + r * s->columns;
      int64_t last = i + r + 1;
      vec top = splat(-INFINITY), total = splat(0);
      for (int64_t j = last; j < seen; j++) row[j] = -INFINITY;
      for (int64_t j = 0; j < seen; j += 16) { vec x = *(vec *)(row + j); top = max_vec(x, top); }
      float peak = highest_of(top);
      for (int64_t j = 0; j < seen; j += 16) {
        vec p = exp_vec((*(vec *)(row + j) - peak) * a->scale);
        *(vec *)(row + j) = p;
      }
      for (int64_t j = last; j < seen; j++) row[j] = 0;
      for (int64_t j = 0; j < seen; j += 16) total += *(vec *)(row + j);
      float sum = sum_vec(total), inverse = 1 / sum;
      for (int64_t j = 0; j < seen; j += 16) *(vec *)(row + j) *= inverse;
      a->lse[(first + i + r) * a->heads + head] = peak * a->scale + logf(sum);
    }
    product(m, s->value, i + m, s->s, s->columns, 1, s->v, s->value, s->o + i * s->value, s->value, 0);
  }
  for (int64_t i = 0; i < s->n; i++)
    store((void *)at(a->out, ((first + i) * a->heads + head) * a->value, a->type), s->o + i * s->value, a->value, a->type);
}

static void backward_document(const Attention *a, Scratch *s, int64_t first, int64_t head, float *d_kv, int64_t group) {
  gather_queries(a, s, first, head);
  if (group == 0) {
    gather_keys(a, s, first, head / (a->heads / a->key_heads));
    transpose(s->kt, s->k, s->n, s->width, s->columns);
    transpose(s->vt, s->v, s->n, s->value, s->columns);
  }
  float tmp[1024], rotated[1024];
  if (group == 0) { memset(s->dk, 0, s->n * s->width * 4); memset(s->dv, 0, s->n * s->value * 4); }
  for (int64_t i = 0; i < s->n; i += BLOCK) {
    int64_t m = s->n - i < BLOCK ? s->n - i : BLOCK, seen = PAD16(i + m);
    float *d_out = s->o + i * s->value;
    float delta[BLOCK];
    for (int64_t r = 0; r < m; r++) {
      int64_t at_row = ((first + i + r) * a->heads + head) * a->value;
      load(d_out + r * s->value, at(a->d_out, at_row, a->type), a->value, a->type);
      for (int64_t d = a->value; d < s->value; d++) d_out[r * s->value + d] = 0;
      load(tmp, at(a->out, at_row, a->type), a->value, a->type);
      delta[r] = 0;
      for (int64_t d = 0; d < a->value; d++) delta[r] += tmp[d] * d_out[r * s->value + d];
    }
    product(m, seen, s->width, s->q + i * s->width, s->width, 1, s->kt, s->columns, s->s, s->columns, 0);
    product(m, seen, s->value, d_out, s->value, 1, s->vt, s->columns, s->dp, s->columns, 0);
    for (int64_t r = 0; r < m; r++) {
      float *p = s->s + r * s->columns, *g = s->dp + r * s->columns;
      float lse = a->lse[(first + i + r) * a->heads + head];
      for (int64_t j = 0; j < seen; j += 16) {
        vec prob = exp_vec(*(vec *)(p + j) * a->scale - lse);
        *(vec *)(p + j) = prob;
        *(vec *)(g + j) = prob * (*(vec *)(g + j) - delta[r]) * a->scale;
      }
      for (int64_t j = i + r + 1; j < seen; j++) p[j] = g[j] = 0;
    }
    product(i + m, s->value, m, s->s, 1, s->columns, d_out, s->value, s->dv, s->value, 1);
    product(i + m, s->width, m, s->dp, 1, s->columns, s->q + i * s->width, s->width, s->dk, s->width, 1);
    product(m, s->width, i + m, s->dp, s->columns, 1, s->k, s->width, s->dq + i * s->width, s->width, 0);
  }
  for (int64_t i = 0; i < s->n; i++) {
    const float *cs = a->cos_sin + (first + i) * a->rope;
    float *dq = s->dq + i * s->width;
    turn_back(rotated, dq + a->nope, cs, a->rope, a->interleaved);
    memcpy(dq + a->nope, rotated, a->rope * 4);
    int64_t width = a->nope + a->rope;
    store((void *)at(a->d_q, ((first + i) * a->heads + head) * width, a->type), dq, width, a->type);
  }
  int64_t repeats = a->heads / a->key_heads, kv = head / repeats, shared = a->kr_head == 0;
  int last_of_group = group == repeats - 1;
  if (!last_of_group) return;
  for (int64_t i = 0; i < s->n; i++) {
    const float *cs = a->cos_sin + (first + i) * a->rope;
    float *dk = s->dk + i * s->width;
    turn_back(rotated, dk + a->nope, cs, a->rope, a->interleaved);
    if (a->nope) store((void *)at(a->d_kn, ((first + i) * a->key_heads + kv) * a->nope, a->type), dk, a->nope, a->type);
    if (shared) for (int64_t d = 0; d < a->rope; d++) d_kv[i * a->rope + d] += rotated[d];
    else store((void *)at(a->d_kr, ((first + i) * a->key_heads + kv) * a->rope, a->type), rotated, a->rope, a->type);
    store((void *)at(a->d_v, ((first + i) * a->key_heads + kv) * a->value, a->type), s->dv + i * s->value, a->value, a->type);
  }
}

static int64_t document_end(const Attention *a, int64_t row, int64_t first) {
  int64_t end = first + 1;
  if (!a->start) return a->tokens;
  while (end < a->tokens && a->start[row * a->tokens + end] == a->start[row * a->tokens + first]) end++;
  return end;
}

/* Rows run in parallel; 0 on success, 1 when memory is short. */
static int over_documents(const Attention *a, int backward) {
  int failed = 0;
#pragma omp parallel for schedule(dynamic)
  for (int64_t row = 0; row < a->batch; row++) {
    float *memory = aligned_alloc(64, PAD16(scratch_floats(a, a->tokens) + 1024) * 4);
    float *d_shared = backward ? malloc(a->tokens * a->rope * 4) : NULL;
    if (!memory || (backward && !d_shared)) { failed = 1; free(memory); free(d_shared); continue; }
    for (int64_t first = 0, end; first < a->tokens; first = end) {
      end = document_end(a, row, first);
      int64_t n = end - first, base = row * a->tokens + first, repeats = a->heads / a->key_heads;
      Scratch s = carve(a, memory, n);
      if (backward) memset(d_shared, 0, n * a->rope * 4);
      for (int64_t head = 0; head < a->heads; head++) {
        if (backward) backward_document(a, &s, base, head, d_shared, head % repeats);
        else forward_document(a, &s, base, head, head % repeats);
      }
      if (backward && a->kr_head == 0)
        store((void *)at(a->d_kr, base * a->rope, a->type), d_shared, n * a->rope, a->type);
    }
    free(memory); free(d_shared);
  }
  return failed;
}

int attention_forward(const Attention *a) { return over_documents(a, 0); }
int attention_backward(const Attention *a) { return over_documents(a, 1); }

#define MAX_WIDTH 16384

void rms_norm_forward(const void *x, const float *w, void *y, float *rstd, int64_t rows, int64_t width, float eps, int type) {
#pragma omp parallel for
  for (int64_t i = 0; i < rows; i++) {
    float v[MAX_WIDTH];
    load(v, at(x, i * width, type), width, type);
    float total = 0;
    for (int64_t d = 0; d < width; d++) total += v[d] * v[d];
    float r = rstd[i] = 1 / sqrtf(total / width + eps);
    for (int64_t d = 0; d < width; d++) v[d] = v[d] * r * w[d];
    store((void *)at(y, i * width, type), v, width, type);
  }
}

void rms_norm_backward(const void *x, const float *w, const float *rstd, const void *dy, void *dx, float *dw,
                       int64_t rows, int64_t width, int type) {
  memset(dw, 0, width * 4);
  for (int64_t i = 0; i < rows; i++) { /* one thread: dw is summed in a fixed order */
    float v[MAX_WIDTH], g[MAX_WIDTH];
    load(v, at(x, i * width, type), width, type);
    load(g, at(dy, i * width, type), width, type);
    float r = rstd[i], mean = 0;
    for (int64_t d = 0; d < width; d++) {
      v[d] *= r;
      dw[d] += g[d] * v[d];
      g[d] *= w[d];
      mean += g[d] * v[d];
    }
    mean /= width;
    for (int64_t d = 0; d < width; d++) g[d] = r * (g[d] - v[d] * mean);
    store((void *)at(dx, i * width, type), g, width, type);
  }
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exp_vec(-x)); }

void accumulate(float *total, const void *part, int64_t n) { /* bfloat16 added to float32 */
#pragma omp parallel for
  for (int64_t i = 0; i < n; i += 16) store_some(total, i, load_some(total, i, n - i, 0, FLOAT32) + load_some(part, i, n - i, 0, BFLOAT16), n - i, FLOAT32);
}

void swiglu_forward(const void *x, void *y, int64_t rows, int64_t width, int type) {
#pragma omp parallel for
  for (int64_t i = 0; i < rows; i++)
    for (int64_t d = 0, at_gate = i * 2 * width; d < width; d += 16) {
      int64_t n = width - d;
      vec gate = load_some(x, at_gate + d, n, 0, type), up = load_some(x, at_gate + width + d, n, 0, type);
      store_some(y, i * width + d, gate * sigmoid(gate) * up, n, type);
    }
}

void swiglu_backward(const void *x, const void *dy, void *dx, int64_t rows, int64_t width, int type) {
#pragma omp parallel for
  for (int64_t i = 0; i < rows; i++)
    for (int64_t d = 0, at_gate = i * 2 * width; d < width; d += 16) {
      int64_t n = width - d;
      vec gate = load_some(x, at_gate + d, n, 0, type), up = load_some(x, at_gate + width + d, n, 0, type);
      vec out = load_some(dy, i * width + d, n, 0, type), s = sigmoid(gate);
      store_some(dx, at_gate + d, out * up * s * (1.0f + gate * (1.0f - s)), n, type);
      store_some(dx, at_gate + width + d, out * gate * s, n, type);
    }
}
