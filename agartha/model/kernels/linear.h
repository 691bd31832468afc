/* Linear maps over packed weights: blocks of 32 outputs, one behind the other, every type with its own form of the inputs. */
#ifndef AGARTHA_LINEAR_H
#define AGARTHA_LINEAR_H
#include "common.h"

enum { INT8 = 2, INT4 = 3 }; /* beside FLOAT32 and BFLOAT16 */
#define WIDE 32              /* outputs of one packed block */
#define GROUP 32             /* inputs that share a scale */

typedef struct { int64_t rank; const float *down, *up; } LowRank; /* down [rank][in], up [rank][out], the scale in it */

/* low: what each adapter adds, from adapter 1 on, or null; only `decode_step` heeds it. */
typedef struct { int64_t in, out, type; const void *weight; const float *bias; const LowRank *low; } Linear;

int64_t matrix_bytes(int64_t in, int64_t out, int64_t type);

/* What one row of inputs takes once converted for weights of a type. */
int64_t line_bytes(int64_t in, int64_t type);

/* One row of floats into the form that weights of a type are multiplied with. */
void convert(const float *x, int64_t in, void *line, int64_t type);

/* Outputs of one block (32 of them, fewer at the end) for S converted rows: y [S][ldy], at the block's first output. */
void multiply_block(const Linear *l, int64_t block, const void *lines, int64_t S, float *y, int64_t ldy);

/* The share of all outputs that belongs to one thread of a team. */
void multiply(const Linear *l, const void *lines, int64_t S, float *y, int64_t ldy, int64_t thread, int64_t threads);

/* Row `o` of the matrix, as floats. */
void unpack_row(const Linear *l, int64_t o, float *to);

#endif
