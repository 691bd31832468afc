/* Scoring tokens: log-probability of a target and entropy under softmax(scale * logits), with the gradient. Of what lies between
   only the log-sum-exp of a row is kept, so that a row passes through the cache and nothing of the size of the logits is stored. */
#include "common.h"

#define LEAST -87.0f /* e^LEAST weighs nothing beside the peak, and has a finite product with itself where a logit is -infinity */

/* logits [rows, width], targets [rows], below 0 where there is none -> logprob (0 there), entropy, lse, all [rows], and none of
   them a number in a row with a logit that is not one. */
void score_forward(const void *logits, const int64_t *targets, float *logprob, float *entropy, float *lse, int64_t rows,
                   int64_t width, float scale, int type) {
#pragma omp parallel for
  for (int64_t i = 0; i < rows; i++) {
    const void *row = at(logits, i * width, type);
    vec top = splat(-INFINITY), total = splat(0), product = splat(0);
    ivec odd = {0};
    for (int64_t d = 0; d < width; d += 16) {
      vec x = load_some(row, d, width - d, -INFINITY, type);
      top = max_vec(x, top);
      odd |= x != x;
    }
    float peak = highest_of(top) * scale;
    int bad = any_of(odd);
    for (int64_t d = 0; d < width; d += 16) {
      vec below = max_vec(load_some(row, d, width - d, -INFINITY, type) * scale - peak, splat(LEAST));
      vec weight = exp_vec(below);
      total += weight;
      product += weight * below;
    }
    float sum = sum_vec(total);
    lse[i] = bad ? NAN : peak + logf(sum);
    entropy[i] = lse[i] - peak - sum_vec(product) / sum;
    float target = 0;
    if (targets[i] >= 0) load(&target, at(row, targets[i], type), 1, type);
    logprob[i] = targets[i] < 0 && !bad ? 0 : target * scale - lse[i];
  }
}

/* d_logits [rows, width] from the gradient of each log-probability [rows] */
void score_backward(const void *logits, const int64_t *targets, const float *lse, const float *d_logprob, void *d_logits,
                    int64_t rows, int64_t width, float scale, int type) {
#pragma omp parallel for
  for (int64_t i = 0; i < rows; i++) {
    const void *row = at(logits, i * width, type);
    void *out = (void *)at(d_logits, i * width, type);
    float grad = targets[i] < 0 ? 0 : d_logprob[i] * scale;
    if (grad == 0) { memset(out, 0, width * (type == FLOAT32 ? 4 : 2)); continue; }
    for (int64_t d = 0; d < width; d += 16) {
      int64_t n = width - d;
      vec weight = exp_vec(load_some(row, d, n, -INFINITY, type) * scale - lse[i]);
      if (targets[i] >= d && targets[i] < d + 16) weight[targets[i] - d] -= 1;
      store_some(out, d, weight * -grad, n, type);
    }
  }
}
