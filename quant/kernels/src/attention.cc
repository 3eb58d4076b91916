// Cuts of attention's work, and its kernels for this CPU.
#include "attention.h"

#include <cstring>

#include "matrix.h"

namespace phirt {

extern const AttentionKernels kAttentionGeneric;
#if defined(__x86_64__) || defined(_M_X64)
extern const AttentionKernels kAttentionAvx2, kAttentionAvx512;
#elif defined(__aarch64__) || defined(_M_ARM64)
extern const AttentionKernels kAttentionNeon;
#endif

Pieces cut_positions(const Attention& attention) {
  Pieces pieces;
  // Short ones, so that all threads have some of few positions; longer ones where there are enough of them.
  pieces.size = attention.past < 1024 ? kLargestPiece / 4 : kLargestPiece;
  pieces.first = attention.begin(0) / pieces.size;
  pieces.count = (attention.end(attention.rows - 1) + pieces.size - 1) / pieces.size - pieces.first;
  return pieces;
}

size_t tile_bytes(int64_t head_dim) {
  // Queries and results, scores, keys and values in float32, and some numbers for each query.
  constexpr int64_t kNumbers = 8;
  const int64_t floats = 2 * kTileQueries * head_dim + kTilePositions * kTileQueries + 2 * kTilePositions * head_dim +
                         kNumbers * kTileQueries + head_dim;
  return static_cast<size_t>(floats) * sizeof(float);
}

const AttentionKernels& best_attention() { return attention_beside(best_kernels().name); }

const AttentionKernels& attention_beside(const char* name) {
  static_cast<void>(name);
#if defined(__x86_64__) || defined(_M_X64)
  const bool has_avx512 = std::strncmp(name, "avx512", 6) == 0 || std::strncmp(name, "amx", 3) == 0;
  if (has_avx512) return kAttentionAvx512;
  if (std::strncmp(name, "avx", 3) == 0) return kAttentionAvx2;
#elif defined(__aarch64__) || defined(_M_ARM64)
  if (std::strncmp(name, "neon", 4) == 0) return kAttentionNeon;
#endif
  return kAttentionGeneric;
}

}  // namespace phirt
