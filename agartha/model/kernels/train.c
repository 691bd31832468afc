/* Training kernels for the CPU: RMSNorm and SwiGLU, each with its gradient, and the sum of gradients. */
#include "common.h"

#define MAX_WIDTH 16384
#define BY_TYPE(function, ...) (type == FLOAT32 ? function(__VA_ARGS__, FLOAT32) : function(__VA_ARGS__, BFLOAT16)) /* known when compiled */

INLINE void norm_row(const void *x, const float *w, void *y, float *rstd, int64_t i, int64_t width, float eps, int type) {
  float v[MAX_WIDTH];
  load(v, at(x, i * width, type), width, type);
  float total = 0;
  for (int64_t d = 0; d < width; d++) total += v[d] * v[d];
  float r = rstd[i] = 1 / sqrtf(total / width + eps);
  for (int64_t d = 0; d < width; d++) v[d] = v[d] * r * w[d];
  store((void *)at(y, i * width, type), v, width, type);
}

void rms_norm_forward(const void *x, const float *w, void *y, float *rstd, int64_t rows, int64_t width, float eps, int type) {
#pragma omp parallel for
  for (int64_t i = 0; i < rows; i++) BY_TYPE(norm_row, x, w, y, rstd, i, width, eps);
}

INLINE void norm_row_backward(const void *x, const float *w, const float *rstd, const void *dy, void *dx, float *dw, int64_t i,
                              int64_t width, int type) {
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

void rms_norm_backward(const void *x, const float *w, const float *rstd, const void *dy, void *dx, float *dw,
                       int64_t rows, int64_t width, int type) {
  memset(dw, 0, width * 4);
  for (int64_t i = 0; i < rows; i++) BY_TYPE(norm_row_backward, x, w, rstd, dy, dx, dw, i, width); /* one thread: dw is summed in a fixed order */
}

INLINE vec sigmoid(vec x, int type) {
#if defined(__AVX512F__)
  if (type == BFLOAT16) return (vec)_mm512_rcp14_ps((__m512)(1.0f + exp_coarse(-x)));
#endif
  return 1.0f / (1.0f + exp_vec(-x));
}

void accumulate(float *total, const void *part, int64_t n) { /* bfloat16 added to float32 */
#pragma omp parallel for
  for (int64_t i = 0; i < n; i += 16) store_some(total, i, load_some(total, i, n - i, 0, FLOAT32) + load_some(part, i, n - i, 0, BFLOAT16), n - i, FLOAT32);
}

INLINE void swiglu_row(const void *x, void *y, int64_t i, int64_t width, int type) {
  for (int64_t d = 0, at_gate = i * 2 * width; d < width; d += 16) {
    int64_t n = width - d;
    vec gate = load_some(x, at_gate + d, n, 0, type), up = load_some(x, at_gate + width + d, n, 0, type);
    store_some(y, i * width + d, gate * sigmoid(gate, type) * up, n, type);
  }
}

void swiglu_forward(const void *x, void *y, int64_t rows, int64_t width, int type) {
#pragma omp parallel for
  for (int64_t i = 0; i < rows; i++) BY_TYPE(swiglu_row, x, y, i, width);
}

INLINE void swiglu_row_backward(const void *x, const void *dy, void *dx, int64_t i, int64_t width, int type) {
  for (int64_t d = 0, at_gate = i * 2 * width; d < width; d += 16) {
    int64_t n = width - d;
    vec gate = load_some(x, at_gate + d, n, 0, type), up = load_some(x, at_gate + width + d, n, 0, type);
    vec out = load_some(dy, i * width + d, n, 0, type), s = sigmoid(gate, type);
    store_some(dx, at_gate + d, out * up * s * (1.0f + gate * (1.0f - s)), n, type);
    store_some(dx, at_gate + width + d, out * gate * s, n, type);
  }
}

void swiglu_backward(const void *x, const void *dy, void *dx, int64_t rows, int64_t width, int type) {
#pragma omp parallel for
  for (int64_t i = 0; i < rows; i++) BY_TYPE(swiglu_row_backward, x, dy, dx, i, width);
}
