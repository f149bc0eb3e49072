/* Gives the BLAS functions that MLX calls to OpenBLAS of PyPI's scipy-openblas32, whose names carry
 * the prefix scipy_. Loaded into the global scope before libmlx, these names win over those of the
 * reference BLAS that MLX's Linux wheel brings. mlxrt/blas.py loads both. */

#define EXPORT __attribute__((visibility("default")))

typedef int blasint; /* scipy-openblas32: 32-bit integers */

extern void scipy_cblas_sgemm(
    int, int, int, blasint, blasint, blasint, float, const float *, blasint, const float *, blasint,
    float, float *, blasint);
extern void scipy_cblas_dgemm(
    int, int, int, blasint, blasint, blasint, double, const double *, blasint, const double *,
    blasint, double, double *, blasint);
extern void scipy_cblas_cgemm(
    int, int, int, blasint, blasint, blasint, const void *, const void *, blasint, const void *,
    blasint, const void *, void *, blasint);

EXPORT void cblas_sgemm(
    int order, int trans_a, int trans_b, blasint m, blasint n, blasint k, float alpha,
    const float *a, blasint lda, const float *b, blasint ldb, float beta, float *c, blasint ldc) {
  scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

EXPORT void cblas_dgemm(
    int order, int trans_a, int trans_b, blasint m, blasint n, blasint k, double alpha,
    const double *a, blasint lda, const double *b, blasint ldb, double beta, double *c,
    blasint ldc) {
  scipy_cblas_dgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

EXPORT void cblas_cgemm(
    int order, int trans_a, int trans_b, blasint m, blasint n, blasint k, const void *alpha,
    const void *a, blasint lda, const void *b, blasint ldb, const void *beta, void *c,
    blasint ldc) {
  scipy_cblas_cgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
