/* Attention over packed documents with its gradient, the rotation fused in. Scores are rebuilt in the backward pass from the
   saved log-sum-exp, as in FlashAttention-2 (arXiv:2307.08691). One body, built for float32 products, and for bfloat16
   products of pairs where the processor has them. */
#include "attention.h"

#define FORM(name) name##_float
#define ELEMENT float
#define ELEMENT_TYPE FLOAT32
#define WORD float
#define PER 1
#define PRODUCT product
#define EXP exp_vec
INLINE vec weave_float(const vec *rows) { return rows[0]; }
#include "attention_form.h"

#if defined(__AVX512BF16__)
#undef FORM
#undef ELEMENT
#undef ELEMENT_TYPE
#undef WORD
#undef PER
#undef PRODUCT
#undef EXP
#define FORM(name) name##_pairs
#define ELEMENT bf16
#define ELEMENT_TYPE BFLOAT16
#define WORD uint32_t
#define PER 2
#define PRODUCT product_pairs
#define EXP exp_coarse
INLINE uvec weave_pairs(const vec *rows) { /* word i: number i of both rows */
  __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)rows[0]));
  __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)rows[1]));
  return (uvec)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
#include "attention_form.h"
#endif

static int run(const Attention *a, int backward) {
#if defined(__AVX512BF16__)
  if (a->type == BFLOAT16) return over_rows_pairs(a, backward);
#endif
  return over_rows_float(a, backward);
}

/* 0 on success, 1 when memory is short. */
int attention_forward(const Attention *a) { return run(a, 0); }
int attention_backward(const Attention *a) { return run(a, 1); }
