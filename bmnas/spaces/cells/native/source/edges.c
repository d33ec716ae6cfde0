/* Weighted edges between nodes, for all members: sums of nodes, and their gradients.
 *
 * S members, J edges, Z elements of a node of one member. A node is (S, Z), weights are (S, J).
 */
#include "common.h"

void edges_forward(i64 members, i64 size, i64 edges, const float *const *nodes,
                   const float *weights, float *sum, int threads) {
    const i64 blocks = (size + 1023) / 1024;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (i64 m = 0; m < members; m++)
        for (i64 block = 0; block < blocks; block++) {
            const i64 at = m * size + block * 1024, count = smaller(1024, size - block * 1024);
            float *restrict to = sum + at;
            for (i64 j = 0; j < edges; j++) {
                const float *restrict from = nodes[j] + at;
                const float w = weights[m * edges + j];
                if (j == 0)
                    for (i64 i = 0; i < count; i++) to[i] = w * from[i];
                else
                    for (i64 i = 0; i < count; i++) to[i] += w * from[i];
            }
        }
}

/* g is the gradient of the sum; what it gives is added to the nodes' gradients. */
void edges_backward(i64 members, i64 size, i64 edges, const float *const *nodes,
                    const float *weights, const float *g, float *const *d_nodes, float *d_weights,
                    int threads) {
#pragma omp parallel for collapse(2) num_threads(threads)
    for (i64 m = 0; m < members; m++)
        for (i64 j = 0; j < edges; j++) {
            const float w = weights[m * edges + j];
            double sum = 0.0;
            for (i64 start = 0; start < size; start += 1024) {
                const i64 at = m * size + start, count = smaller(1024, size - start);
                const float *restrict from = g + at;
                float *restrict to = d_nodes[j] + at;
                sum += dot(nodes[j] + at, from, count);
                for (i64 i = 0; i < count; i++) to[i] += w * from[i];
            }
            d_weights[m * edges + j] = (float)sum;
        }
}
