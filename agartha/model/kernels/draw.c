/* Drawing tokens: for each row of logits the softmax, the token at which its running sum passes a random number, and that
   token's log-probability. Only the sums of stretches are kept between. */
#include "common.h"

#define STRETCH 64
#define LEAST -86.0f /* logits so far below the peak weigh nothing, as does what is masked by -infinity */

/* e^(k x - peak) of STRETCH logits from x on, of which `left` are there; returns their sum. */
INLINE float weigh(const float *x, int64_t left, float k, float peak, float *weights) {
  float padded[STRETCH];
  vec total = splat(0);
  if (left < STRETCH) {
    for (int64_t j = 0; j < STRETCH; j++) padded[j] = j < left ? x[j] : -INFINITY;
    x = padded;
  }
  for (int j = 0; j < STRETCH; j += 16) {
    vec below = *(const vec *)(x + j) * k - peak, w = pick(below > splat(LEAST), exp_vec(below), splat(0));
    *(vec *)(weights + j) = w, total += w;
  }
  return sum_vec(total);
}

/* Where the running sum of a stretch's weights, beginning at `sum`, passes `wanted`: at its last weight at the latest. */
static int64_t place(const float *weights, double sum, double wanted) {
  int64_t last = 0;
  for (int64_t j = 0; j < STRETCH; j++) {
    if (weights[j] == 0) continue;
    last = j, sum += weights[j];
    if (sum > wanted) break;
  }
  return last;
}

static float highest(const float *x, int64_t V, int *is_number) {
  vec top = splat(-INFINITY);
  ivec odd = {0};
  int64_t j = 0;
  for (; j + 16 <= V; j += 16) {
    vec v = *(const vec *)(x + j);
    odd |= v != v, top = max_vec(v, top);
  }
  float peak = highest_of(top);
  int bad = any_of(odd);
  for (; j < V; j++) peak = x[j] > peak ? x[j] : peak, bad |= x[j] != x[j];
  *is_number = !bad;
  return peak;
}

/* logits [S, V]; inverse [S]: one over the temperature; share [S] in [0, 1), or below 0 for the likeliest token -> chosen [S],
   logprob [S], which is not a number if a logit is not. */
void draw(const float *logits, int64_t S, int64_t V, const float *inverse, const double *share, int64_t *chosen, float *logprob,
          int64_t threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && S * V > 50000)
  for (int64_t s = 0; s < S; s++) {
    const float *x = logits + s * V;
    float weights[STRETCH], sums[V / STRETCH + 1], k = inverse[s], top;
    int is_number;
    double total = 0, sum = 0, before = 0;
    int64_t found = 0, last = 0;
    float peak = k * (top = highest(x, V, &is_number));
    for (int64_t j = 0; j < V; j += STRETCH) total += sums[j / STRETCH] = weigh(x + j, V - j, k, peak, weights);
    if (share[s] < 0) while (found < V - 1 && x[found] != top) found++;
    else {
      double wanted = share[s] * total;
      for (int64_t j = 0; j < V && sum <= wanted; j += STRETCH) {
        float part = sums[j / STRETCH];
        if (part > 0) last = j, before = sum, sum += part;
      }
      weigh(x + last, V - last, k, peak, weights);
      found = last + place(weights, before, wanted);
    }
    chosen[s] = found;
    logprob[s] = is_number ? k * x[found] - peak - (float)log(total) : NAN;
  }
}
