#pragma once

#include <cstdint>

// Inner loops on the host, for several instruction sets.
namespace tycho::kernels {

double dot(const double* x, const double* y, int64_t n);
/// y += factor x
void add(double factor, const double* x, double* y, int64_t n);

/// result[columns] = A'A v, with A [rows, columns] row by row. Reads A once; sums in A's type.
void gram_of_columns(const float* a, int64_t rows, int64_t columns, const float* v, float* result);
/// result[rows] = A A' v. `scratch` [columns].
void gram_of_rows(const float* a, int64_t rows, int64_t columns, const float* v, float* scratch,
                  float* result);

}  // namespace tycho::kernels
