/* Packing, and products of packed weights with a few or many rows.
   float32 and bfloat16 keep pairs of inputs together; bfloat16 uses the processor's pairwise dot product where it has one.
   8- and 4-bit weights are multiplied in integers: every row of inputs is rounded to 8 bits by groups of 32, as llama.cpp does,
   groups of four products are summed by one instruction (AVX-512 VNNI) where there is one, and each group's sum is scaled.
   An output is summed in one order whatever S is, so that a row's result does not depend on the others. */
#include "linear.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

#define GROUPS(in) (((in) + GROUP - 1) / GROUP)
#define BYTES4 (WIDE * GROUP / 2 + WIDE * 4) /* a group of a block: nibbles, scales, minima */
#define BYTES8 (WIDE * GROUP + WIDE * 2)     /* levels + 128, scales */
#define SOME_ROWS 128                        /* rows that a thread takes at once */

typedef uint16_t half;

static int64_t even(int64_t in) { return in + (in & 1); }

static int64_t block_bytes(int64_t in, int64_t type) {
  switch (type) {
    case FLOAT32: return WIDE * even(in) * 4;
    case BFLOAT16: return WIDE * even(in) * 2;
    case INT8: return GROUPS(in) * BYTES8;
    default: return GROUPS(in) * BYTES4;
  }
}

int64_t matrix_bytes(int64_t in, int64_t out, int64_t type) { return (out + WIDE - 1) / WIDE * block_bytes(in, type); }

/* ---- packing ----------------------------------------------------------------------------------------------------- */

/* [out, in] floats with any strides. */
void pack_dense(const float *w, int64_t out_stride, int64_t in_stride, int64_t in, int64_t out, void *to, int64_t type) {
  int64_t inputs = even(in), blocks = (out + WIDE - 1) / WIDE;
#pragma omp parallel for if (in * out > 100000)
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t k = 0; k < inputs; k++)
      for (int64_t j = 0; j < WIDE; j++) {
        int64_t o = block * WIDE + j;
        float value = o < out && k < in ? w[o * out_stride + k * in_stride] : 0;
        if (type == FLOAT32) ((float *)to)[(block * inputs + k) * WIDE + j] = value;
        else ((bf16 *)to)[(block * inputs + (k & ~(int64_t)1)) * WIDE + 2 * j + (k & 1)] = to_bf16(value);
      }
}

/* levels [out, in] in 0..15, or int8; scale and minimum [out, groups] (`step` = groups, or 0 if one serves a whole output).
   A 4-byte lane holds four inputs of one output; of 4-bit levels the low nibbles hold four and the high ones the next four. */
void pack_levels(const uint8_t *levels, const half *scale, const half *minimum, int64_t step, int64_t in, int64_t out, uint8_t *to,
                 int64_t type) {
  int64_t groups = GROUPS(in), blocks = (out + WIDE - 1) / WIDE;
#pragma omp parallel for if (in * out > 100000)
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t g = 0; g < groups; g++) {
      uint8_t *group = to + block * block_bytes(in, type) + g * (type == INT4 ? BYTES4 : BYTES8);
      memset(group, type == INT4 ? 0 : 128, WIDE * GROUP / (type == INT4 ? 2 : 1));
      half *scales = (half *)(group + WIDE * GROUP / (type == INT4 ? 2 : 1));
      for (int64_t j = 0; j < WIDE; j++) {
        int64_t o = block * WIDE + j, side = j / 16 * 16 * GROUP;
        scales[j] = o < out ? scale[step ? o * step + g : o] : 0;
        if (type == INT4) scales[WIDE + j] = o < out ? minimum[o * step + g] : 0;
        for (int64_t k = 0; k < GROUP && o < out && g * GROUP + k < in; k++) {
          uint8_t level = levels[o * in + g * GROUP + k];
          if (type == INT8) group[side + k / 4 * 64 + j % 16 * 4 + k % 4] = level ^ 128; /* two's complement + 128 */
          else group[side / 2 + k / 8 * 64 + j % 16 * 4 + k % 4] |= level << (k & 4);
        }
      }
    }
}

void unpack_row(const Linear *l, int64_t o, float *to) {
  int64_t j = o % WIDE, side = j / 16 * 16 * GROUP, in = l->in;
  const uint8_t *block = (const uint8_t *)l->weight + o / WIDE * block_bytes(in, l->type);
  for (int64_t k = 0; k < in; k++) {
    if (l->type == FLOAT32) to[k] = ((const float *)block)[k * WIDE + j];
    else if (l->type == BFLOAT16) to[k] = from_bf16(((const bf16 *)block)[(k & ~(int64_t)1) * WIDE + 2 * j + (k & 1)]);
    else {
      int64_t i = k % GROUP;
      const uint8_t *group = block + k / GROUP * (l->type == INT4 ? BYTES4 : BYTES8);
      const half *scales = (const half *)(group + WIDE * GROUP / (l->type == INT4 ? 2 : 1));
      if (l->type == INT8) to[k] = (group[side + i / 4 * 64 + j % 16 * 4 + i % 4] - 128) * from_half(scales[j]);
      else to[k] = (group[side / 2 + i / 8 * 64 + j % 16 * 4 + i % 4] >> (i & 4) & 15) * from_half(scales[j]) + from_half(scales[WIDE + j]);
    }
  }
}

/* Rows `index` of the matrix -> [n, in]. */
void unpack(const Linear *l, const int64_t *index, int64_t n, float *to) {
#pragma omp parallel for if (n * l->in > 100000)
  for (int64_t i = 0; i < n; i++) unpack_row(l, index[i], to + i * l->in);
}

/* ---- the inputs -------------------------------------------------------------------------------------------------- */

/* Of a row rounded to 8 bits: levels [groups * 32], their scales [groups], scale x sum of levels [groups], -128 x sum [groups]. */
typedef struct { const int8_t *levels; const float *scale, *sum; const int32_t *offset; } Rounded;

int64_t line_bytes(int64_t in, int64_t type) {
  if (type == FLOAT32) return even(in) * 4;
  if (type == BFLOAT16) return even(in) * 2;
  return (GROUPS(in) * (GROUP + 12) + 63) & ~(int64_t)63;
}

INLINE Rounded rounded(const void *line, int64_t groups) {
  const int8_t *levels = line;
  const float *scale = (const float *)(levels + groups * GROUP);
  return (Rounded){levels, scale, scale + groups, (const int32_t *)(scale + 2 * groups)};
}

typedef int8_t bytes16 __attribute__((vector_size(16), aligned(1), may_alias));

static void round_row(const float *x, int64_t in, void *line) {
  const int32_t magic = 0x4b400000; /* 1.5 x 2^23: what is added to it is rounded to an integer in its low bits */
  int64_t groups = GROUPS(in);
  Rounded to = rounded(line, groups);
  for (int64_t g = 0; g < groups; g++) {
    float padded[GROUP];
    const float *from = x + g * GROUP;
    int64_t left = in - g * GROUP;
    if (left < GROUP) memset(padded, 0, sizeof padded), memcpy(padded, from, left * 4), from = padded;
    vec a = *(const vec *)from, b = *(const vec *)(from + 16), size = max_vec(max_vec(a, -a), max_vec(b, -b));
    float peak = highest_of(size);
    float inverse = peak > 0 ? 127 / peak : 0;
    ivec p = (ivec)(a * inverse + 12582912.0f) - magic, q = (ivec)(b * inverse + 12582912.0f) - magic, both = p + q;
    *(bytes16 *)(to.levels + g * GROUP) = __builtin_convertvector(p, bytes16);
    *(bytes16 *)(to.levels + g * GROUP + 16) = __builtin_convertvector(q, bytes16);
    int32_t total = 0;
    for (int i = 0; i < 16; i++) total += both[i];
    float scale = peak / 127;
    ((float *)to.scale)[g] = scale, ((float *)to.sum)[g] = scale * total, ((int32_t *)to.offset)[g] = -128 * total;
  }
}

void convert(const float *x, int64_t in, void *line, int64_t type) {
  if (type == FLOAT32) {
    memcpy(line, x, in * 4);
    if (in & 1) ((float *)line)[in] = 0;
  } else if (type == BFLOAT16) {
    int64_t k = 0;
    for (; k + 16 <= in; k += 16) store16(line, k, *(const vec *)(x + k), BFLOAT16);
    for (; k < in; k++) ((bf16 *)line)[k] = to_bf16(x[k]);
    if (in & 1) ((bf16 *)line)[in] = 0;
  } else round_row(x, in, line);
}

/* ---- products of float32 and bfloat16 ---------------------------------------------------------------------------- */

INLINE vec dot_pairs(vec acc, const uint32_t *a, ivec w) {
#if defined(__AVX512BF16__)
  return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(*a), (__m512bh)w);
#else
  acc += from_bf16(*a & 0xffff) * (vec)(w << 16);
  return acc + from_bf16(*a >> 16) * (vec)(w & (int32_t)0xffff0000);
#endif
}

INLINE void finish(vec low, vec high, float *y, int64_t left, const float *bias) {
  float line[WIDE], *to = left < WIDE ? line : y;
  *(vec *)to = low, *(vec *)(to + 16) = high;
  if (left > WIDE) left = WIDE;
  if (bias) for (int64_t j = 0; j < left; j++) to[j] += bias[j];
  if (to == line) memcpy(y, line, left * 4);
}

INLINE void dense_rows(const int R, const int type, const void *w, int64_t inputs, const void *x, float *y, int64_t ldy, int64_t left,
                       const float *bias) {
  vec acc[12][2];
  for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = splat(0);
  if (type == FLOAT32) {
    for (int64_t k = 0; k < inputs; k++) {
      const float *wk = (const float *)w + k * WIDE;
      vec low = *(const vec *)wk, high = *(const vec *)(wk + 16);
      for (int r = 0; r < R; r++) {
        float a = ((const float *)x)[r * inputs + k];
        acc[r][0] += a * low, acc[r][1] += a * high;
      }
    }
  } else {
    for (int64_t k = 0; k < inputs; k += 2) {
      const bf16 *wk = (const bf16 *)w + k * WIDE;
      ivec low = *(const ivec *)wk, high = *(const ivec *)(wk + 32);
      for (int r = 0; r < R; r++) {
        const uint32_t *a = (const uint32_t *)((const bf16 *)x + r * inputs + k);
        acc[r][0] = dot_pairs(acc[r][0], a, low), acc[r][1] = dot_pairs(acc[r][1], a, high);
      }
    }
  }
  for (int r = 0; r < R; r++) finish(acc[r][0], acc[r][1], y + r * ldy, left, bias);
}

/* ---- products of 8 and 4 bits ------------------------------------------------------------------------------------ */

INLINE ivec dot_fours(ivec acc, ivec w, const int8_t *a) { /* unsigned bytes of w times four signed bytes at a */
  int32_t four;
  memcpy(&four, a, 4);
#if defined(__AVX512VNNI__)
  return (ivec)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(four));
#else
  for (int i = 0; i < 4; i++) acc += (w >> 8 * i & 255) * (int32_t)(int8_t)(four >> 8 * i);
  return acc;
#endif
}

INLINE vec fused(vec a, vec b, vec c) { /* a b + c, in one rounding where there is an instruction */
#if defined(__AVX512F__)
  return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}

/* Sums of R rows for 16 outputs a side, sides `from` to `to` of a block: a group's weights are unpacked, then met by all rows. */
INLINE void level_rows(const int R, const int from, const int to, const int type, const uint8_t *w, int64_t groups, const void *x,
                       int64_t ldx, vec sums[][2]) {
  const int levels_bytes = type == INT4 ? WIDE * GROUP / 2 : WIDE * GROUP;
  for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = splat(0);
  for (int64_t g = 0; g < groups; g++, w += type == INT4 ? BYTES4 : BYTES8)
    for (int side = from; side < to; side++) {
      const uint8_t *bytes = w + side * levels_bytes / 2, *scales = w + levels_bytes + side * 32;
      ivec levels[8];
      for (int i = 0; i < 8; i++)
        if (type == INT8) levels[i] = *(const ivec *)(bytes + i * 64);
        else levels[i] = *(const ivec *)(bytes + i / 2 * 64) >> (i & 1 ? 4 : 0) & 0x0f0f0f0f;
      vec scale = load_half16((const half *)scales), minimum = type == INT4 ? load_half16((const half *)(scales + 64)) : splat(0);
      for (int r = 0; r < R; r++) {
        Rounded row = rounded((const char *)x + r * ldx, groups);
        ivec acc = (ivec){0} + (type == INT8 ? row.offset[g] : 0);
        for (int i = 0; i < 8; i++) acc = dot_fours(acc, levels[i], row.levels + g * GROUP + 4 * i);
        sums[r][side] = fused(__builtin_convertvector(acc, vec), scale * row.scale[g], sums[r][side]);
        if (type == INT4) sums[r][side] = fused(minimum, splat(row.sum[g]), sums[r][side]);
      }
    }
}

/* ---- any type ---------------------------------------------------------------------------------------------------- */

INLINE void block_rows(const int R, const int type, const Linear *l, int64_t block, const char *x, int64_t ldx, float *y, int64_t ldy) {
  const char *w = (const char *)l->weight + block * block_bytes(l->in, type);
  const float *bias = l->bias ? l->bias + block * WIDE : NULL;
  int64_t left = l->out - block * WIDE;
  if (type == FLOAT32 || type == BFLOAT16) {
    dense_rows(R, type, w, even(l->in), x, y, ldy, left, bias);
    return;
  }
  vec sums[16][2];
  if (R > 4) {
    level_rows(R, 0, 1, type, (const uint8_t *)w, GROUPS(l->in), x, ldx, sums);
    vec kept[16];
    for (int r = 0; r < R; r++) kept[r] = sums[r][0];
    level_rows(R, 1, 2, type, (const uint8_t *)w, GROUPS(l->in), x, ldx, sums);
    for (int r = 0; r < R; r++) sums[r][0] = kept[r];
  } else level_rows(R, 0, 2, type, (const uint8_t *)w, GROUPS(l->in), x, ldx, sums);
  for (int r = 0; r < R; r++) finish(sums[r][0], sums[r][1], y + r * ldy, left, bias);
}

/* As many rows at once as registers hold; what is left over at once, too: one row takes as long as three. */
#define ROWS(R, TYPE) block_rows(R, TYPE, l, block, x + s * ldx, ldx, y + s * ldy, ldy)
#define LEFT(R, TYPE) case R: ROWS(R, TYPE); break;
#define IN_TURNS(NAME, TYPE, A, B, MORE)                                                                                  \
  static void NAME(const Linear *l, int64_t block, const char *x, int64_t ldx, int64_t S, float *y, int64_t ldy) {        \
    int64_t s = 0;                                                                                                        \
    for (; s + A <= S; s += A) ROWS(A, TYPE);                                                                             \
    for (; s + B <= S; s += B) ROWS(B, TYPE);                                                                             \
    switch (S - s) { MORE(TYPE) LEFT(5, TYPE) LEFT(4, TYPE) LEFT(3, TYPE) LEFT(2, TYPE) LEFT(1, TYPE) }                   \
  }
#define NO_MORE(TYPE)
#define TWO_MORE(TYPE) LEFT(7, TYPE) LEFT(6, TYPE)
IN_TURNS(block_float32, FLOAT32, 12, 6, NO_MORE)
IN_TURNS(block_bfloat16, BFLOAT16, 12, 6, NO_MORE)
IN_TURNS(block_int8, INT8, 16, 8, TWO_MORE)
IN_TURNS(block_int4, INT4, 16, 8, TWO_MORE)

void multiply_block(const Linear *l, int64_t block, const void *lines, int64_t S, float *y, int64_t ldy) {
  int64_t ldx = line_bytes(l->in, l->type);
  (l->type == FLOAT32 ? block_float32 : l->type == BFLOAT16 ? block_bfloat16 : l->type == INT8 ? block_int8 : block_int4)(
      l, block, lines, ldx, S, y, ldy);
}

void multiply(const Linear *l, const void *lines, int64_t S, float *y, int64_t ldy, int64_t thread, int64_t threads) {
  int64_t blocks = (l->out + WIDE - 1) / WIDE, parts = (S + SOME_ROWS - 1) / SOME_ROWS, ldx = line_bytes(l->in, l->type);
  int64_t items = blocks * parts;
  for (int64_t i = items * thread / threads; i < items * (thread + 1) / threads; i++) {
    int64_t block = i / parts, first = i % parts * SOME_ROWS, n = S - first < SOME_ROWS ? S - first : SOME_ROWS;
    multiply_block(l, block, (const char *)lines + first * ldx, n, y + first * ldy + block * WIDE, ldy);
  }
}

/* x [S, in] -> y [S, out]; `lines` is room for S converted rows. */
void linear(const Linear *l, const float *x, int64_t S, void *lines, float *y, int64_t threads) {
#pragma omp parallel num_threads(threads) if (threads > 1 && S * l->in * l->out > 200000)
  {
    int64_t thread = 0, team = 1;
#if defined(_OPENMP)
    thread = omp_get_thread_num(), team = omp_get_num_threads();
#endif
#pragma omp for schedule(static)
    for (int64_t s = 0; s < S; s++) convert(x + s * l->in, l->in, (char *)lines + s * line_bytes(l->in, l->type), l->type);
    multiply(l, lines, S, y, l->out, thread, team);
  }
}
