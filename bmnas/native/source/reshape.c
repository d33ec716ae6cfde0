/* Features after their projection: BatchNorm, ReLU, dropout, and the edges of all Cells.
 *
 * F features, R rows, C channels, N Cells. x and y are (F, R, C), the mixed result (N, R, C).
 */
#include "common.h"

void reshape_forward(i64 features, i64 rows, i64 channels, i64 cells, const float *x,
                     const float *mix, const Norm *norm, uint32_t threshold, float factor,
                     uint64_t seed, float *y, float *mixed, int threads) {
    const i64 blocks = (channels + BLOCK - 1) / BLOCK, size = rows * channels;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for collapse(2)
        for (i64 f = 0; f < features; f++)
            for (i64 block = 0; block < blocks; block++) {
                const i64 first = block * BLOCK, at = f * channels;
                const Norm own = {norm->weight + at,      norm->bias + at,
                                  norm->running_mean + at, norm->running_var + at,
                                  norm->momentum,          norm->eps,
                                  norm->mean + at,         norm->rstd + at};
                column_statistics(x + f * size, rows, channels, first,
                                  smaller(BLOCK, channels - first), &own);
            }
#pragma omp for
        for (i64 r = 0; r < rows; r++) {
            for (i64 k = 0; k < cells; k++)
                memset(mixed + k * size + r * channels, 0, sizeof(float) * (size_t)channels);
            for (i64 f = 0; f < features; f++) {
                const uint32_t own = row_seed(seed, f * rows + r);
                const float *restrict in = x + f * size + r * channels;
                float *restrict out = y + f * size + r * channels;
                const float *restrict mean = norm->mean + f * channels;
                const float *restrict rstd = norm->rstd + f * channels;
                const float *restrict weight = norm->weight + f * channels;
                const float *restrict bias = norm->bias + f * channels;
#pragma omp simd
                for (i64 c = 0; c < channels; c++) {
                    const float z = (in[c] - mean[c]) * rstd[c] * weight[c] + bias[c];
                    out[c] = (z < 0.0f ? 0.0f : z) * keep(random_bits(own, c), 0, threshold, factor);
                }
                for (i64 k = 0; k < cells; k++) {
                    float *restrict sum = mixed + k * size + r * channels;
                    const float w = mix[k * features + f];
#pragma omp simd
                    for (i64 c = 0; c < channels; c++) sum[c] += w * out[c];
                }
            }
        }
    }
}

/* d_mix is (F, blocks, N) and still to be summed over blocks. y and x stay as they are. */
void reshape_backward(i64 features, i64 rows, i64 channels, i64 cells, const float *g,
                      const float *x, const float *y, const float *mix, const Norm *norm,
                      float factor, float *dx, float *d_weight, float *d_bias, double *d_mix,
                      int threads) {
    const i64 blocks = (channels + BLOCK - 1) / BLOCK, size = rows * channels;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (i64 f = 0; f < features; f++)
        for (i64 block = 0; block < blocks; block++) {
            const i64 first = block * BLOCK, count = smaller(BLOCK, channels - first);
            const i64 at = f * channels + first;
            double *edges = d_mix + (f * blocks + block) * cells;
            double sum[BLOCK] = {0}, product[BLOCK] = {0};
            float part[BLOCK], part_product[BLOCK];
            for (i64 k = 0; k < cells; k++) edges[k] = 0.0;
            for (i64 start = 0; start < rows; start += BLOCK) {
                memset(part, 0, sizeof part);
                memset(part_product, 0, sizeof part_product);
                for (i64 r = start; r < smaller(start + BLOCK, rows); r++) {
                    const i64 row = r * channels + first;
                    const float *restrict out = y + f * size + row;
                    const float *restrict in = x + f * size + row;
                    float *restrict d = dx + f * size + row;
                    for (i64 c = 0; c < count; c++) d[c] = 0.0f;
                    for (i64 k = 0; k < cells; k++) {
                        const float *restrict from = g + k * size + row;
                        const float w = factor * mix[k * features + f];
                        edges[k] += dot(from, out, count);
#pragma omp simd
                        for (i64 c = 0; c < count; c++) d[c] += w * from[c];
                    }
#pragma omp simd
                    for (i64 c = 0; c < count; c++) {
                        const float normal = (in[c] - norm->mean[at + c]) * norm->rstd[at + c];
                        d[c] = out[c] <= 0.0f ? 0.0f : d[c];
                        part[c] += d[c];
                        part_product[c] += d[c] * normal;
                    }
                }
                for (i64 c = 0; c < count; c++) {
                    sum[c] += part[c];
                    product[c] += part_product[c];
                }
            }
            for (i64 c = 0; c < count; c++) {
                d_bias[at + c] = part[c] = (float)sum[c];
                d_weight[at + c] = part_product[c] = (float)product[c];
                part[c] /= (float)rows;
                part_product[c] /= (float)rows;
            }
            for (i64 r = 0; r < rows; r++) {
                const float *restrict in = x + f * size + r * channels + first;
                float *restrict d = dx + f * size + r * channels + first;
#pragma omp simd
                for (i64 c = 0; c < count; c++) {
                    const float normal = (in[c] - norm->mean[at + c]) * norm->rstd[at + c];
                    d[c] = norm->rstd[at + c] * norm->weight[at + c] *
                           (d[c] - part[c] - normal * part_product[c]);
                }
            }
        }
}
