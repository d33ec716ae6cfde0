/* What the kernels share: random numbers, exp, BatchNorm over the columns of a matrix.
 *
 * Several supernets of one shape, the members, go through a kernel in one call. Each has its own
 * parameters and its own masks; the tensors of all lie one after another.
 *
 * Everything is float32 and contiguous. Sums run in a fixed order that does not depend on the
 * number of threads, so that a run gives the same bits on one machine. NaN must come through:
 * comparisons are written so that a NaN takes the branch that keeps it.
 */
#ifndef BMNAS_COMMON_H
#define BMNAS_COMMON_H

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

typedef int64_t i64;

enum { BLOCK = 64 }; /* columns that one thread works on, and rows summed in single precision */

static inline i64 thread_number(void) { return omp_get_thread_num(); }

static inline i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

/* 32 random bits for an element: the finaliser of MurmurHash3 over a row's own seed. */
static inline uint32_t scramble(uint32_t x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

static inline uint32_t row_seed(uint64_t seed, i64 row) {
    const uint64_t mixed = (seed ^ (uint64_t)row) * 0x9e3779b97f4a7c15u;
    return scramble((uint32_t)(mixed >> 32)) ^ (uint32_t)seed;
}

static inline uint32_t random_bits(uint32_t seed, i64 column) {
    return scramble(seed + (uint32_t)column * 0x9e3779b9u);
}

/* The seed of a member's masks: the given one for the first, else the finaliser of SplitMix64. */
static inline uint64_t member_seed(uint64_t seed, i64 member) {
    if (member == 0) return seed;
    uint64_t x = seed + (uint64_t)member * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* factor where the given byte of the random bits is kept, else 0. */
static inline float keep(uint32_t bits, int byte, uint32_t threshold, float factor) {
    return ((bits >> (8 * byte)) & 255u) >= threshold ? factor : 0.0f;
}

/* Cephes' polynomial, which compilers turn into vector instructions; 2e-7 relative. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = rintf(x * 1.44269504f);
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {.bits = ((int32_t)n + 127) << 23};
    return p * power.value;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

static inline float dot(const float *restrict a, const float *restrict b, i64 count) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

/* A BatchNorm in training: what the caller keeps in a module, and what a batch gives. */
typedef struct {
    const float *weight, *bias;         /* (width) */
    float *running_mean, *running_var;  /* (width) */
    float momentum, eps;
    float *mean, *rstd;                 /* (width), written forward and read backward */
} Norm;

/* The BatchNorm that begins at a column. */
static inline Norm norm_at(const Norm *norm, i64 at) {
    return (Norm){norm->weight + at,       norm->bias + at, norm->running_mean + at,
                  norm->running_var + at,  norm->momentum,  norm->eps,
                  norm->mean + at,         norm->rstd + at};
}

/* Column c of a row x: normalised, and with the affine part too. */
static inline float normal(const Norm *norm, const float *restrict x, i64 c) {
    return (x[c] - norm->mean[c]) * norm->rstd[c];
}

static inline float normalised(const Norm *norm, const float *restrict x, i64 c) {
    return normal(norm, x, c) * norm->weight[c] + norm->bias[c];
}

/* Mean and 1 / standard deviation of up to BLOCK columns from ``first``; updates what runs. */
static void column_statistics(const float *x, i64 rows, i64 stride, i64 first, i64 count,
                              const Norm *norm) {
    double mean[BLOCK] = {0}, square[BLOCK] = {0};
    float centre[BLOCK], part[BLOCK];
    x += first;
    for (i64 start = 0; start < rows; start += BLOCK) {
        const i64 end = smaller(start + BLOCK, rows);
        memset(part, 0, sizeof part);
        for (i64 r = start; r < end; r++)
            for (i64 c = 0; c < count; c++) part[c] += x[r * stride + c];
        for (i64 c = 0; c < count; c++) mean[c] += part[c];
    }
    for (i64 c = 0; c < count; c++) centre[c] = (float)(mean[c] / (double)rows);
    for (i64 start = 0; start < rows; start += BLOCK) {
        const i64 end = smaller(start + BLOCK, rows);
        memset(part, 0, sizeof part);
        for (i64 r = start; r < end; r++)
            for (i64 c = 0; c < count; c++) {
                const float d = x[r * stride + c] - centre[c];
                part[c] += d * d;
            }
        for (i64 c = 0; c < count; c++) square[c] += part[c];
    }
    for (i64 c = 0; c < count; c++) {
        const i64 at = first + c;
        const double variance = square[c] / (double)rows;
        const double unbiased = square[c] / (double)(rows - 1);
        norm->mean[at] = centre[c];
        norm->rstd[at] = (float)(1.0 / sqrt(variance + (double)norm->eps));
        norm->running_mean[at] += norm->momentum * (centre[c] - norm->running_mean[at]);
        norm->running_var[at] += norm->momentum * ((float)unbiased - norm->running_var[at]);
    }
}

/* What LayerNorm needs of ``count`` values: their mean and 1 / standard deviation. */
static inline void layer_statistics(const float *restrict x, i64 count, float eps, float *mean,
                                    float *rstd) {
    float sum = 0.0f, square = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < count; i++) sum += x[i];
    const float centre = sum / (float)count;
#pragma omp simd reduction(+ : square)
    for (i64 i = 0; i < count; i++) {
        const float d = x[i] - centre;
        square += d * d;
    }
    *mean = centre;
    *rstd = 1.0f / sqrtf(square / (float)count + eps);
}

/* LayerNorm backward over one sample: adds to d_weight and d_bias, writes dx (may be g). */
static inline void layer_backward(const float *g, const float *x, const float *restrict weight,
                                  i64 count, float mean, float rstd, float *restrict d_weight,
                                  float *restrict d_bias, float *dx) {
    float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
    for (i64 i = 0; i < count; i++) {
        const float normal = (x[i] - mean) * rstd, weighted = g[i] * weight[i];
        d_weight[i] += g[i] * normal;
        d_bias[i] += g[i];
        sum += weighted;
        product += weighted * normal;
    }
    sum /= (float)count;
    product /= (float)count;
#pragma omp simd
    for (i64 i = 0; i < count; i++) {
        const float normal = (x[i] - mean) * rstd;
        dx[i] = rstd * (g[i] * weight[i] - sum - normal * product);
    }
}

/* Adds the partial sums (chunks, width) into the first of them, in order. */
static void reduce_chunks(float *partial, i64 chunks, i64 width) {
#pragma omp for
    for (i64 first = 0; first < width; first += BLOCK) {
        const i64 count = smaller(BLOCK, width - first);
        for (i64 k = 1; k < chunks; k++)
            for (i64 c = 0; c < count; c++)
                partial[first + c] += partial[k * width + first + c];
    }
}

#endif
