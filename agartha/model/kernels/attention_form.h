/* The body of attention.c. A WORD holds PER numbers that one multiply-add of a product takes together: the right side of a
   product has them side by side in "columns" (numbers of one row) or "rows" (one number of PER rows). */

#define TILE_ROWS 6 /* rows that a product works on together: what lies above the diagonal is left out by so many */
#define BLOCK 48    /* rows of the backward pass at a time; a multiple of TILE_ROWS and PER */
#define WORDS(n) (((n) + PER - 1) / PER)

/* `own` tokens from `first` on, counted over all rows; `table` turns the first of them. */
typedef struct {
  int64_t first, own;
  const float *table;
} FORM(Document);

typedef struct {
  WORD *q, *q_rows, *g, *g_rows, *k, *k_columns, *k_rows, *v, *v_columns, *v_rows, *p_rows, *ds_rows, *ds;
  float *s, *dp, *o, *dq, *dk, *dv;
  int64_t width, value, wide_width, wide_value, columns; /* words of a row, its padded numbers, padded keys */
} FORM(Scratch);

static int64_t FORM(carve)(const Attention *a, FORM(Scratch) *s, char *memory, int64_t own) {
  int64_t used = 0;
  s->width = WORDS(a->nope + a->rope), s->value = WORDS(a->value);
  s->wide_width = PAD16(a->nope + a->rope), s->wide_value = PAD16(a->value), s->columns = PAD16(own) + 32;
#define TAKE(field, count) s->field = (void *)(memory + used), used += PAD16(count) * 4
  TAKE(q, own * s->width); TAKE(q_rows, WORDS(own) * s->wide_width);
  TAKE(g, own * s->value); TAKE(g_rows, WORDS(own) * s->wide_value);
  TAKE(k, own * s->width); TAKE(k_columns, s->columns * s->width); TAKE(k_rows, WORDS(own) * s->wide_width);
  TAKE(v, own * s->value); TAKE(v_columns, s->columns * s->value); TAKE(v_rows, WORDS(own) * s->wide_value);
  TAKE(p_rows, WORDS(BLOCK) * s->columns); TAKE(ds_rows, WORDS(BLOCK) * s->columns); TAKE(ds, BLOCK * s->columns);
  TAKE(s, BLOCK * s->columns); TAKE(dp, BLOCK * s->columns);
  TAKE(o, TILE_ROWS * s->wide_value); TAKE(dq, BLOCK * s->wide_width);
  TAKE(dk, own * s->wide_width); TAKE(dv, own * s->wide_value);
#undef TAKE
  return used;
}

INLINE void FORM(take)(ELEMENT *to, const void *from, int64_t n, int type) {
  if (PER == 2) copy_halves((bf16 *)to, from, n);
  else load((float *)to, from, n, type);
}

/* `still` numbers as they are and `rope` numbers turned, from two places, into one row of `words`. */
INLINE void FORM(take_turned)(WORD *to, int64_t words, const void *still, int64_t n, const void *turning, int64_t rope,
                              const float *table, const Attention *a) {
  ELEMENT *row = (ELEMENT *)to;
  FORM(take)(row, still, n, a->type);
  turn(row + n, ELEMENT_TYPE, turning, a->type, table, rope, a->interleaved, 1);
  for (int64_t d = n + rope; d < words * PER; d++) row[d] = 0;
}

static void FORM(to_columns)(WORD *restrict to, const WORD *restrict from, int64_t n, int64_t words, int64_t columns) {
  for (int64_t d = 0; d < words; d++) {
    for (int64_t i = 0; i < n; i++) to[d * columns + i] = from[i * words + d];
    for (int64_t i = n; i < columns; i++) to[d * columns + i] = 0;
  }
}

static void FORM(to_rows)(WORD *restrict to, const WORD *restrict from, int64_t n, int64_t words, int64_t numbers, int64_t wide) {
  for (int64_t i = 0; i < n; i += PER, to += wide) {
    const ELEMENT *row = (const ELEMENT *)(from + i * words), *next = (const ELEMENT *)(from + (i + 1) * words);
#if PER == 1
    load(to, row, numbers, FLOAT32);
    (void)next;
#else
    if (i + 1 < n) for (int64_t d = 0; d < numbers; d++) to[d] = row[d] | (uint32_t)next[d] << 16;
    else for (int64_t d = 0; d < numbers; d++) to[d] = row[d];
#endif
    for (int64_t d = numbers; d < wide; d++) to[d] = 0;
  }
}

static void FORM(gather_keys)(const Attention *a, FORM(Scratch) *s, FORM(Document) g, int64_t kv, int backward) {
  int64_t keys = g.own, width = a->nope + a->rope;
  for (int64_t i = 0; i < keys; i++) {
    int64_t place = g.first + i;
    FORM(take_turned)(s->k + i * s->width, s->width, at(a->k_nope, place * a->kn_row + kv * a->kn_head, a->type), a->nope,
                      at(a->k_rope, place * a->kr_row + kv * a->kr_head, a->type), a->rope, g.table + i * 2 * a->rope, a);
    ELEMENT *v = (ELEMENT *)(s->v + i * s->value);
    FORM(take)(v, at(a->v, place * a->v_row + kv * a->v_head, a->type), a->value, a->type);
    for (int64_t d = a->value; d < s->value * PER; d++) v[d] = 0;
  }
  FORM(to_columns)(s->k_columns, s->k, keys, s->width, s->columns);
  if (backward) {
    FORM(to_columns)(s->v_columns, s->v, keys, s->value, s->columns);
    FORM(to_rows)(s->k_rows, s->k, keys, s->width, width, s->wide_width);
  } else FORM(to_rows)(s->v_rows, s->v, keys, s->value, a->value, s->wide_value);
}

static void FORM(gather_queries)(const Attention *a, FORM(Scratch) *s, FORM(Document) g, int64_t head) {
  for (int64_t i = 0; i < g.own; i++) {
    int64_t place = (g.first + i) * a->q_row + head * a->q_head;
    FORM(take_turned)(s->q + i * s->width, s->width, at(a->q, place, a->type), a->nope, at(a->q, place + a->nope, a->type),
                      a->rope, g.table + i * 2 * a->rope, a);
  }
}

#define LANES ((ivec){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})

static void FORM(forward)(const Attention *a, FORM(Scratch) *s, FORM(Document) g, int64_t head) {
  FORM(gather_queries)(a, s, g, head);
  for (int64_t i = 0; i < g.own; i += TILE_ROWS) {
    int64_t m = g.own - i < TILE_ROWS ? g.own - i : TILE_ROWS, keys = i + m, seen = PAD16(keys);
    float scaled[TILE_ROWS];
    PRODUCT(m, seen, s->width, s->q + i * s->width, s->width, 1, s->k_columns, s->columns, s->s, s->columns, 0);
    for (int64_t r = 0; r < m; r++) {
      float *row = s->s + r * s->columns;
      ELEMENT *p = (ELEMENT *)s->ds + r * s->columns * PER;
      int32_t last = i + r + 1;
      vec top = splat(-1e30f), total = splat(0);
      for (int32_t j = 0; j < seen; j += 16) top = max_vec(pick(LANES + j < last, *(vec *)(row + j), splat(-1e30f)), top);
      float peak = highest_of(top);
      for (int32_t j = 0; j < seen; j += 16) {
        vec prob = pick(LANES + j < last, EXP((*(vec *)(row + j) - peak) * a->scale), splat(0));
        total += prob;
        store16(p, j, prob, ELEMENT_TYPE);
      }
      float sum = sum_vec(total);
      scaled[r] = 1 / sum;
      a->lse[(g.first + i + r) * a->heads + head] = peak * a->scale + logf(sum);
    }
    PRODUCT(m, s->wide_value, WORDS(keys), s->ds, s->columns, 1, s->v_rows, s->wide_value, s->o, s->wide_value, 0);
    for (int64_t r = 0; r < m; r++) {
      float *o = s->o + r * s->wide_value;
      for (int64_t d = 0; d < s->wide_value; d += 16) *(vec *)(o + d) *= scaled[r];
      store((void *)at(a->out, ((g.first + i + r) * a->heads + head) * a->value, a->type), o, a->value, a->type);
    }
  }
}

/* Probabilities and gradients of the scores of PER rows from r on, for 16 keys from j on. */
INLINE void FORM(gradients)(FORM(Scratch) *s, int64_t r, int32_t j, int64_t m, const float *delta, const float *lse, float scale,
                            int64_t i, int diagonal) {
  vec p[PER], ds[PER];
  for (int64_t u = 0; u < PER; u++) {
    int64_t at_row = (r + u) * s->columns + j;
    p[u] = EXP(*(vec *)(s->s + at_row) * scale - lse[r + u]);
    ds[u] = p[u] * ((*(vec *)(s->dp + at_row) - delta[r + u]) * scale);
    if (diagonal || u) {
      ivec sees = LANES + j < (int32_t)(r + u < m ? i + r + u + 1 : 0);
      p[u] = pick(sees, p[u], splat(0)), ds[u] = pick(sees, ds[u], splat(0));
    }
    store16((ELEMENT *)s->ds + (r + u) * s->columns * PER, j, ds[u], ELEMENT_TYPE);
  }
  *(__typeof__(FORM(weave)(p)) *)(s->p_rows + r / PER * s->columns + j) = FORM(weave)(p);
  *(__typeof__(FORM(weave)(p)) *)(s->ds_rows + r / PER * s->columns + j) = FORM(weave)(ds);
}

static void FORM(backward)(const Attention *a, FORM(Scratch) *s, FORM(Document) g, int64_t head) {
  int64_t width = a->nope + a->rope, base = g.first;
  FORM(gather_queries)(a, s, g, head);
  for (int64_t i = 0; i < g.own; i++) {
    ELEMENT *row = (ELEMENT *)(s->g + i * s->value);
    FORM(take)(row, at(a->d_out, ((base + i) * a->heads + head) * a->value, a->type), a->value, a->type);
    for (int64_t d = a->value; d < s->value * PER; d++) row[d] = 0;
  }
  FORM(to_rows)(s->q_rows, s->q, g.own, s->width, width, s->wide_width);
  FORM(to_rows)(s->g_rows, s->g, g.own, s->value, a->value, s->wide_value);
  for (int64_t i = 0; i < g.own; i += BLOCK) {
    int64_t m = g.own - i < BLOCK ? g.own - i : BLOCK;
    float delta[BLOCK + 1], lse[BLOCK + 1];
    for (int64_t r = 0; r < m; r++) {
      int64_t place = (base + i + r) * a->heads + head;
      vec sum = splat(0);
      for (int64_t d = 0; d < a->value; d += 16)
        sum += load_some(a->out, place * a->value + d, a->value - d, 0, a->type) * load_some(a->d_out, place * a->value + d, a->value - d, 0, a->type);
      delta[r] = sum_vec(sum), lse[r] = a->lse[place];
    }
    for (int64_t r = 0; r < m; r += TILE_ROWS) {
      int64_t n = m - r < TILE_ROWS ? m - r : TILE_ROWS, seen = PAD16(i + r + n);
      PRODUCT(n, seen, s->width, s->q + (i + r) * s->width, s->width, 1, s->k_columns, s->columns, s->s + r * s->columns, s->columns, 0);
      PRODUCT(n, seen, s->value, s->g + (i + r) * s->value, s->value, 1, s->v_columns, s->columns, s->dp + r * s->columns, s->columns, 0);
    }
    for (int64_t r = 0; r < m; r += PER) {
      int32_t whole = (i + r + 1) & ~15, end = i + r + PER + TILE_ROWS;
      for (int32_t j = 0; j < whole; j += 16) FORM(gradients)(s, r, j, m, delta, lse, a->scale, i, 0);
      /* beyond its own end a row is 0 as far as a tile reaches, be it a tile of rows or of keys */
      for (int32_t j = whole; j < end; j += 16) FORM(gradients)(s, r, j, m, delta, lse, a->scale, i, 1);
    }
    for (int64_t j = 0; j < i + m; j += TILE_ROWS) { /* keys from j on are seen by rows from j on */
      int64_t n = i + m - j < TILE_ROWS ? i + m - j : TILE_ROWS, from = j > i ? (j - i) / PER : 0;
      int64_t words = WORDS(m) - from, row = i / PER + from;
      PRODUCT(n, s->wide_value, words, s->p_rows + from * s->columns + j, 1, s->columns, s->g_rows + row * s->wide_value, s->wide_value, s->dv + j * s->wide_value, s->wide_value, 1);
      PRODUCT(n, s->wide_width, words, s->ds_rows + from * s->columns + j, 1, s->columns, s->q_rows + row * s->wide_width, s->wide_width, s->dk + j * s->wide_width, s->wide_width, 1);
    }
    for (int64_t r = 0; r < m; r += TILE_ROWS) {
      int64_t n = m - r < TILE_ROWS ? m - r : TILE_ROWS;
      PRODUCT(n, s->wide_width, WORDS(i + r + n), s->ds + r * s->columns, s->columns, 1, s->k_rows, s->wide_width, s->dq + r * s->wide_width, s->wide_width, 0);
    }
    for (int64_t r = 0; r < m; r++) {
      float *dq = s->dq + r * s->wide_width;
      turn(dq + a->nope, FLOAT32, dq + a->nope, FLOAT32, g.table + (i + r) * 2 * a->rope, a->rope, a->interleaved, -1);
      store((void *)at(a->d_q, ((base + i + r) * a->heads + head) * width, a->type), dq, width, a->type);
    }
  }
}

static void FORM(finish_keys)(const Attention *a, FORM(Scratch) *s, FORM(Document) g, int64_t kv, float *d_shared) {
  for (int64_t i = 0; i < g.own; i++) {
    int64_t place = (g.first + i) * a->key_heads + kv;
    float *dk = s->dk + i * s->wide_width, *turned = dk + a->nope;
    if (a->nope) store((void *)at(a->d_kn, place * a->nope, a->type), dk, a->nope, a->type);
    if (a->kr_head == 0) for (int64_t d = 0; d < a->rope; d++) d_shared[i * a->rope + d] += turned[d];
    else turn((void *)at(a->d_kr, place * a->rope, a->type), a->type, turned, FLOAT32, g.table + i * 2 * a->rope, a->rope, a->interleaved, -1);
    store((void *)at(a->d_v, place * a->value, a->type), s->dv + i * s->wide_value, a->value, a->type);
  }
}

static void FORM(over_heads)(const Attention *a, FORM(Scratch) *s, FORM(Document) g, int64_t kv, float *d_shared, int backward) {
  int64_t repeats = a->heads / a->key_heads;
  FORM(gather_keys)(a, s, g, kv, backward);
  if (backward) memset(s->dk, 0, g.own * s->wide_width * 4), memset(s->dv, 0, g.own * s->wide_value * 4);
  for (int64_t head = kv * repeats; head < (kv + 1) * repeats; head++) {
    if (backward) FORM(backward)(a, s, g, head);
    else FORM(forward)(a, s, g, head);
  }
  if (backward) FORM(finish_keys)(a, s, g, kv, d_shared);
}

/* Rows run in parallel. */
static int FORM(over_rows)(const Attention *a, int backward) {
  int failed = 0;
  FORM(Scratch) whole;
  int64_t scratch = FORM(carve)(a, &whole, NULL, a->tokens), tables = PAD16(a->tokens * 2 * a->rope), d_shared = PAD16(a->tokens * a->rope);
#pragma omp parallel for schedule(dynamic)
  for (int64_t row = 0; row < a->batch; row++) {
    float *table = aligned_alloc(64, (tables + d_shared) * 4 + scratch), *shared = table + tables;
    if (!table) { failed = 1; continue; }
    fill_tables(table, a->cos_sin + row * a->tokens * a->rope, a->tokens, a->rope, a->interleaved);
    if (backward) memset(shared, 0, d_shared * 4);
    for (int64_t first = 0, end; first < a->tokens; first = end) {
      end = document_end(a, row, first);
      FORM(Document) g = {row * a->tokens + first, end - first, table + first * 2 * a->rope};
      FORM(Scratch) s;
      FORM(carve)(a, &s, (char *)(shared + d_shared), g.own);
      for (int64_t kv = 0; kv < a->key_heads; kv++) FORM(over_heads)(a, &s, g, kv, shared + first * a->rope, backward);
    }
    for (int64_t t = 0; backward && a->kr_head == 0 && t < a->tokens; t++)
      turn((void *)at(a->d_kr, (row * a->tokens + t) * a->rope, a->type), a->type, shared + t * a->rope, FLOAT32, table + t * 2 * a->rope,
           a->rope, a->interleaved, -1);
    free(table);
  }
  return failed;
}

#undef TILE_ROWS
#undef BLOCK
#undef WORDS
#undef LANES
