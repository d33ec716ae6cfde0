/* Features after their projection: BatchNorm, ReLU, dropout, and the edges to all Cells.
 *
 * F features, R rows, C channels, N Cells. x are F matrices (R, C), y is (F, R, C), the norm's
 * vectors are (F, C), mix is (N, F), the mixed result (N, R, C).
 */
#include "common.h"

typedef struct {
    i64 features, rows, channels, cells;
} Shape;

void reshape_forward(i64 features, i64 rows, i64 channels, i64 cells, const float *const *x,
                     const float *mix, const float *weight, const float *bias, float *running_mean,
                     float *running_var, float momentum, float eps, i64 threshold, float factor,
                     i64 seed, float *mean, float *rstd, float *y, float *mixed, i64 threads) {
    const i64 blocks = (channels + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads((int)threads)
    {
#pragma omp for collapse(2)
        for (i64 f = 0; f < features; f++)
            for (i64 block = 0; block < blocks; block++) {
                const i64 at = f * channels, first = block * BLOCK;
                const Norm norm = {weight + at,      bias + at, running_mean + at,
                                   running_var + at, momentum,  eps,
                                   mean + at,        rstd + at};
                column_statistics(x[f], rows, channels, first, smaller(BLOCK, channels - first),
                                  &norm);
            }
#pragma omp for
        for (i64 r = 0; r < rows; r++) {
            for (i64 k = 0; k < cells; k++)
                memset(mixed + (k * rows + r) * channels, 0, sizeof(float) * (size_t)channels);
            for (i64 f = 0; f < features; f++) {
                const uint32_t own = row_seed((uint64_t)seed, f * rows + r);
                const i64 at = f * channels;
                const float *restrict in = x[f] + r * channels;
                float *restrict out = y + (f * rows + r) * channels;
#pragma omp simd
                for (i64 c = 0; c < channels; c++) {
                    const float z =
                        (in[c] - mean[at + c]) * rstd[at + c] * weight[at + c] + bias[at + c];
                    out[c] = (z < 0.0f ? 0.0f : z) *
                             keep(random_bits(own, c), 0, (uint32_t)threshold, factor);
                }
                for (i64 k = 0; k < cells; k++) {
                    float *restrict sum = mixed + (k * rows + r) * channels;
                    const float w = mix[k * features + f];
#pragma omp simd
                    for (i64 c = 0; c < channels; c++) sum[c] += w * out[c];
                }
            }
        }
    }
}

/* Some columns of a feature, all pointers at their corner: the gradients of x, of the norm and of
 * the feature's edges; mix is that of the feature's first edge. Without dx, of the edges alone. */
static void block_backward(const Shape *s, i64 count, const float *g, const float *x,
                           const float *y, const float *mix, float factor, const float *weight,
                           const float *restrict mean, const float *restrict rstd, float *dx,
                           float *d_weight, float *d_bias, double *edges) {
    const i64 rows = s->rows, wide = s->channels;
    double sum[BLOCK] = {0}, product[BLOCK] = {0};
    float part[BLOCK], part_product[BLOCK];
    for (i64 start = 0; start < rows; start += BLOCK) {
        memset(part, 0, sizeof part);
        memset(part_product, 0, sizeof part_product);
        for (i64 r = start; r < smaller(start + BLOCK, rows); r++) {
            const float *restrict out = y + r * wide, *restrict in = x + r * wide;
            for (i64 k = 0; k < s->cells; k++)
                edges[k] += dot(g + (k * rows + r) * wide, out, count);
            if (dx == NULL) continue;
            float *restrict d = dx + r * wide;
            for (i64 c = 0; c < count; c++) d[c] = 0.0f;
            for (i64 k = 0; k < s->cells; k++) {
                const float *restrict from = g + (k * rows + r) * wide;
                const float w = factor * mix[k * s->features];
#pragma omp simd
                for (i64 c = 0; c < count; c++) d[c] += w * from[c];
            }
#pragma omp simd
            for (i64 c = 0; c < count; c++) {
                d[c] = out[c] <= 0.0f ? 0.0f : d[c];
                part[c] += d[c];
                part_product[c] += d[c] * (in[c] - mean[c]) * rstd[c];
            }
        }
        for (i64 c = 0; c < count && dx != NULL; c++) {
            sum[c] += part[c];
            product[c] += part_product[c];
        }
    }
    if (dx == NULL) return;
    for (i64 c = 0; c < count; c++) {
        d_bias[c] = (float)sum[c];
        d_weight[c] = (float)product[c];
        part[c] = d_bias[c] / (float)rows;
        part_product[c] = d_weight[c] / (float)rows;
    }
    for (i64 r = 0; r < rows; r++) {
        const float *restrict in = x + r * wide;
        float *restrict d = dx + r * wide;
#pragma omp simd
        for (i64 c = 0; c < count; c++) {
            const float normal = (in[c] - mean[c]) * rstd[c];
            d[c] = rstd[c] * weight[c] * (d[c] - part[c] - normal * part_product[c]);
        }
    }
}

/* g is (N, R, C), dx as y or NULL; d_mix is (F, blocks of columns, N), to be summed over blocks. */
void reshape_backward(i64 features, i64 rows, i64 channels, i64 cells, const float *g,
                      const float *const *x, const float *y, const float *mix, float factor,
                      const float *weight, const float *mean, const float *rstd, float *dx,
                      float *d_weight, float *d_bias, double *d_mix, i64 threads) {
    const Shape shape = {features, rows, channels, cells};
    const i64 blocks = (channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(2) num_threads((int)threads)
    for (i64 f = 0; f < features; f++)
        for (i64 block = 0; block < blocks; block++) {
            const i64 column = block * BLOCK, at = f * channels + column;
            const i64 corner = f * rows * channels + column;
            double *edges = d_mix + (f * blocks + block) * cells;
            for (i64 k = 0; k < cells; k++) edges[k] = 0.0;
            block_backward(&shape, smaller(BLOCK, channels - column), g + column, x[f] + column,
                           y + corner, mix + f, factor, weight + at, mean + at, rstd + at,
                           dx == NULL ? NULL : dx + corner, d_weight + at, d_bias + at, edges);
        }
}
