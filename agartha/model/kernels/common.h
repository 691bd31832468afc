/* Shared by the kernels: vectors, bfloat16, exp, and a small matrix product. Plain C with GCC/Clang vector types,
   so that any processor compiles it; on AVX-512 it becomes full-width code. */
#ifndef AGARTHA_COMMON_H
#define AGARTHA_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t bf16;

enum { FLOAT32 = 0, BFLOAT16 = 1 };
#define INLINE static inline __attribute__((always_inline))
#define PAD16(n) (((n) + 15) & ~(int64_t)15)

INLINE float from_bf16(bf16 x) {
  union { uint32_t u; float f; } v = {(uint32_t)x << 16};
  return v.f;
}

INLINE bf16 to_bf16(float x) { /* round to nearest even */
  union { float f; uint32_t u; } v = {x};
  return (bf16)((v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16);
}

typedef uint32_t uvec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2), may_alias));

INLINE vec load16(const void *base, int64_t i, int type) { /* 16 numbers from element i on */
  if (type == FLOAT32) return *(const vec *)((const float *)base + i);
  return (vec)(__builtin_convertvector(*(const halves *)((const bf16 *)base + i), uvec) << 16);
}

INLINE void store16(void *base, int64_t i, vec x, int type) {
  if (type == FLOAT32) { *(vec *)((float *)base + i) = x; return; }
#if defined(__AVX512BF16__) /* as below, but subnormal numbers become 0 */
  _mm256_storeu_si256((__m256i *)((bf16 *)base + i), (__m256i)_mm512_cvtneps_pbh((__m512)x));
  return;
#endif
  uvec u = (uvec)x;
  *(halves *)((bf16 *)base + i) = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, halves);
}

INLINE void load(float *restrict to, const void *from, int64_t n, int type) {
  int64_t i = 0; /* memcpy would be a call, and rows are short */
  for (; i + 16 <= n; i += 16) *(vec *)(to + i) = load16(from, i, type);
  if (type == FLOAT32) for (; i < n; i++) to[i] = ((const float *)from)[i];
  else for (; i < n; i++) to[i] = from_bf16(((const bf16 *)from)[i]);
}

INLINE void store(void *to, const float *restrict from, int64_t n, int type) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store16(to, i, *(const vec *)(from + i), type);
  if (type == FLOAT32) for (; i < n; i++) ((float *)to)[i] = from[i];
  else for (; i < n; i++) ((bf16 *)to)[i] = to_bf16(from[i]);
}

INLINE void copy_halves(bf16 *to, const bf16 *from, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) *(halves *)(to + i) = *(const halves *)(from + i);
  for (; i < n; i++) to[i] = from[i];
}

INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec pick(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* IEEE half precision, as caches and scales have it. */
INLINE float from_half(uint16_t x) {
  int32_t magnitude = x & 0x7fff;
  union { int32_t i; float f; } v = {(magnitude << 13) + (112 << 23)};
  float f = magnitude < 0x400 ? magnitude * 0x1p-24f : v.f;
  return x & 0x8000 ? -f : f;
}

INLINE uint16_t to_half(float x) { /* to nearest even; beyond 65504 it stays there */
  union { float f; uint32_t u; } v = {x}, least = {0x1p-14f};
  uint32_t sign = v.u >> 16 & 0x8000, size = v.u & 0x7fffffff;
  if (size > 0x7f800000) return 0x7e00; /* not a number */
  if (size >= 0x477fe000) return sign | 0x7bff;
  if (size >= least.u) return sign | (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
  union { uint32_t u; float f; } small = {size};
  small.f += 0.5f; /* its last bit is 2^-24, a step of the smallest halves */
  return sign | (small.u - 0x3f000000);
}

INLINE vec load_half16(const uint16_t *x) {
#if defined(__AVX512F__)
  return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
#else
  ivec bits = __builtin_convertvector(*(const halves *)x, ivec), magnitude = bits & 0x7fff;
  vec tiny = __builtin_convertvector(magnitude, vec) * 0x1p-24f;
  vec f = pick(magnitude < 0x400, tiny, (vec)((magnitude << 13) + (112 << 23)));
  return (vec)((ivec)f | (bits & 0x8000) << 16);
#endif
}

INLINE void store_half(uint16_t *to, const float *from, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  __m512 most = _mm512_set1_ps(65504);
  for (; i + 16 <= n; i += 16) {
    __m512 x = _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), most), _mm512_min_ps(most, _mm512_loadu_ps(from + i)));
    _mm256_storeu_si256((__m256i *)(to + i), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < n; i++) to[i] = to_half(from[i]);
}

INLINE const void *at(const void *base, int64_t index, int type) {
  return (const char *)base + index * (type == FLOAT32 ? 4 : 2);
}

INLINE vec load_some(const void *base, int64_t i, int64_t n, float behind, int type) { /* the first n of 16 from element i on */
  if (n >= 16) return load16(base, i, type);
  float part[16];
  for (int j = 0; j < 16; j++) part[j] = behind;
  load(part, at(base, i, type), n, type);
  return *(vec *)part;
}

INLINE void store_some(void *base, int64_t i, vec x, int64_t n, int type) {
  if (n >= 16) store16(base, i, x, type);
  else store((void *)at(base, i, type), (float *)&x, n, type);
}

#if defined(__AVX512F__)
INLINE vec max_vec(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec min_vec(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE vec max_vec(vec a, vec b) { return pick(a > b, a, b); }
INLINE vec min_vec(vec a, vec b) { return pick(a < b, a, b); }
#endif

INLINE vec exp_vec(vec x) { /* relative error about 2e-7 for x in [-87, 88] */
  x = min_vec(max_vec(x, splat(-87.0f)), splat(88.0f));
#if defined(__AVX512F__)
  vec nf = (vec)_mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  vec t = x * 1.44269504f;
  vec shift = pick(t < splat(0.0f), splat(-0.5f), splat(0.5f));
  ivec n = __builtin_convertvector(t + shift, ivec);
  vec nf = __builtin_convertvector(n, vec);
#endif
  vec r = x - nf * 0.693359375f;
  r = r + nf * 2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
#if defined(__AVX512F__)
  return (vec)_mm512_scalef_ps((__m512)p, (__m512)nf);
#else
  return p * (vec)((n + 127) << 23);
#endif
}

#if defined(__AVX512F__)
INLINE vec exp_coarse(vec x) { /* relative error about 5e-6: enough for what becomes bfloat16; for x up to 88 */
  vec t = x * 1.44269504f;
  vec n = (vec)_mm512_roundscale_ps((__m512)t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = t - n;
  vec p = splat(9.6181291e-3f);
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
}
#endif

#if defined(__AVX512F__)
INLINE float sum_vec(vec x) { return _mm512_reduce_add_ps((__m512)x); }
INLINE float highest_of(vec x) { return _mm512_reduce_max_ps((__m512)x); }
#else
INLINE float sum_vec(vec x) {
  float total = 0;
  for (int i = 0; i < 16; i++) total += x[i];
  return total;
}

INLINE float highest_of(vec x) {
  float top = x[0];
  for (int i = 1; i < 16; i++) top = x[i] > top ? x[i] : top;
  return top;
}
#endif

INLINE int any_of(ivec mask) {
  int found = 0;
  for (int i = 0; i < 16; i++) found |= mask[i];
  return found;
}

INLINE float exp_one(float x) { return exp_vec(splat(x))[0]; }

/* C[m][n] (+)= sum_k A(m, k) B[k][n]; A is read at A[m * am + k * ak]; n is a multiple of 16. */
#define TILE(name, WORD, ADD, MR, NV)                                                        \
  INLINE void name##_##MR##_##NV(int64_t K, const WORD *A, int64_t am, int64_t ak,           \
                                 const WORD *B, int64_t ldb, float *C, int64_t ldc, int add) { \
    vec acc[MR][NV];                                                                          \
    for (int i = 0; i < MR; i++)                                                              \
      for (int j = 0; j < NV; j++) acc[i][j] = add ? *(const vec *)(C + i * ldc + 16 * j) : splat(0); \
    for (int64_t k = 0; k < K; k++) {                                                         \
      vec b[NV];                                                                              \
      for (int j = 0; j < NV; j++) b[j] = *(const vec *)(B + k * ldb + 16 * j);               \
      for (int i = 0; i < MR; i++)                                                            \
        for (int j = 0; j < NV; j++) acc[i][j] = ADD(acc[i][j], A[i * am + k * ak], b[j]);    \
    }                                                                                         \
    for (int i = 0; i < MR; i++)                                                              \
      for (int j = 0; j < NV; j++) *(vec *)(C + i * ldc + 16 * j) = acc[i][j];                \
  }

#define ROWS_WIDE(name, MR)                                                                   \
  if (width == 48) name##_##MR##_3(K, a, am, ak, b, ldb, c, ldc, add);                        \
  else if (width == 32) name##_##MR##_2(K, a, am, ak, b, ldb, c, ldc, add);                   \
  else name##_##MR##_1(K, a, am, ak, b, ldb, c, ldc, add);

#define MATRIX_PRODUCT(name, WORD, ADD) /* tiles of more sums no longer fit the registers: half as fast */ \
  TILE(name, WORD, ADD, 6, 3) TILE(name, WORD, ADD, 6, 2) TILE(name, WORD, ADD, 6, 1)         \
  TILE(name, WORD, ADD, 2, 3) TILE(name, WORD, ADD, 2, 2) TILE(name, WORD, ADD, 2, 1)         \
  TILE(name, WORD, ADD, 1, 3) TILE(name, WORD, ADD, 1, 2) TILE(name, WORD, ADD, 1, 1)         \
  __attribute__((unused)) static void name(int64_t M, int64_t N, int64_t K, const WORD *A, int64_t am, int64_t ak, \
                                           const WORD *B, int64_t ldb, float *C, int64_t ldc, int add) { \
    for (int64_t n = 0, width; n < N; n += width) {                                           \
      width = N - n == 48 ? 48 : N - n >= 32 ? 32 : 16;                                       \
      for (int64_t m = 0, rows; m < M; m += rows) {                                           \
        const WORD *a = A + m * am, *b = B + n;                                               \
        float *c = C + m * ldc + n;                                                           \
        rows = M - m >= 6 ? 6 : M - m >= 2 ? 2 : 1;                                           \
        if (rows == 6) { ROWS_WIDE(name, 6) }                                                 \
        else if (rows == 2) { ROWS_WIDE(name, 2) }                                            \
        else { ROWS_WIDE(name, 1) }                                                           \
      }                                                                                       \
    }                                                                                         \
  }

#define ADD_PRODUCT(sum, x, y) ((sum) + (x) * (y))
MATRIX_PRODUCT(product, float, ADD_PRODUCT)

#if defined(__AVX512BF16__) /* the same with a pair of bfloat16 numbers for each k */
#define ADD_PAIRS(sum, x, y) ((vec)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)_mm512_set1_epi32(x), (__m512bh)(y)))
MATRIX_PRODUCT(product_pairs, uint32_t, ADD_PAIRS)
#endif

#endif
